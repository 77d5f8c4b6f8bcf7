"""The routes, one file for each object of the contract."""
