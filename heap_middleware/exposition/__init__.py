"""How it is shown: metric families for Prometheus, and the pages the middleware answers itself."""
