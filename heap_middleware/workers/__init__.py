"""Many processes, one scrape: each worker publishes what it knows, and whichever is scraped answers for all."""
