"""The asynchronous client, written by hand; ``voxfleet.client.sync`` is generated from this folder.

After a change run ``scripts/generate_sync_client.py``. Keep to what it can translate: what differs between
the two beyond ``await`` belongs in ``port_aio`` and ``port_sync``.
"""
