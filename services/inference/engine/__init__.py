"""What runs inside an engine actor: fetch, compute, encode, store. Imports no Ray.

``calls`` runs one piece of work with a stop flag and a stream of events, ``speech`` and ``conversion``
are the work itself (they import the engines, and so torch), ``blobs`` fetches and stores bytes.
"""
