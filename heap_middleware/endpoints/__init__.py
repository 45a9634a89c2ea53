"""Which route put it there: route templates, measuring backends, and the ledger. Knows no HTTP and no Prometheus."""
