"""The synchronous client, generated from ``voxfleet.client.aio``: change that, not this."""
