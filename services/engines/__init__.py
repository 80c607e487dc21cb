"""Model code shared by the services: engines and the bundles of weights they load."""
