"""What the trainer asks of the record: the bundles that the store has."""

from __future__ import annotations

import grpc

from services.common.rpc import status
from services.engines.bundles.catalogue import CONTENTVEC_BASE
from services.engines.bundles.manifest import Manifest
from voxfleet.internal.v1 import catalog_pb2, catalog_pb2_grpc

_TIMEOUT_S = 10.0


class GrpcBundles:
    """The stored bundles, as metadata knows them.

    Args:
        channel: to metadata.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = catalog_pb2_grpc.CatalogServiceStub(channel)

    async def contentvec(self) -> Manifest | None:
        """See :class:`services.trainer.ports.Bundles`."""
        try:
            found = await self._stub.ListStoredBundles(
                catalog_pb2.ListStoredBundlesRequest(), timeout=_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from None
        manifests = (Manifest.from_json(bundle.manifest_json) for bundle in found.bundles)
        return next((manifest for manifest in manifests if manifest.engine == CONTENTVEC_BASE.engine), None)
