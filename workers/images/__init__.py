"""Images of requests: found, fetched, checked and put into one form before an engine sees them.

chat body ─ references ─► where each image is ─ resolver ─► data: URLs, PNG or JPEG
file_id   stored      Postgres, as the project that asks
data:     resolver
https:    remote      off by default
checking ─► decoder     processes of their own, with limits
"""
