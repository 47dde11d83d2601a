"""The tests; a package so that they can share builders and servers: `from tests.servers import …`."""
