"""The Coordinator for sites that run etcd: it holds the log and says who leads; telemetry and calls stay with exo."""
