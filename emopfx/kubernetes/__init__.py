"""The Kubernetes side: what is written to a cluster, and what is read from it."""
