"""What lies under every stage: artifacts, content keys, the graph, the wrapper of a job."""
