"""The embedded stack: Postgres, S3, Ray and the five services as child processes of one supervisor.

``python -m services.stack up`` (``make up``) runs it in the foreground;
:func:`services.stack.stack.running_stack` runs it inside a demo or an end-to-end test.
Linux only: it relies on the parent-death signal and on 127.0.0.0/8 being loopback.
"""
