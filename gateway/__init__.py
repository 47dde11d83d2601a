"""The seed's HTTP route, in front of the queue."""
