"""The HTTP service and the command line. Imports `jobs`, never `workers`."""
