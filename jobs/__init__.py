"""The domain of Promptmill: wire types, states, tables, ingest, leases and results. No web framework, no engine."""
