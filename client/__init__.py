"""The command line of clients: batches and tables, by HTTP, with the stock `openai` SDK."""
