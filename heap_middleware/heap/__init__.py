"""What is on the heap: types and their names, the census, who refers to whom. Knows no HTTP and no Prometheus."""
