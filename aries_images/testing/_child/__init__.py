"""What runs in the process of its own: Redis, the database and the worker, at the orders of a test."""
