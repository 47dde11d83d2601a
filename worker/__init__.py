"""How messages flow: from the queue into one transaction, and back out as answers. It knows nothing of images."""
