"""The packages that tests have from npm."""

from tests.nodejs import Node

LOAD = """
const { Parser } = require("@asyncapi/parser");
const { default: Redis } = require("ioredis");
console.log(typeof new Parser().parse, typeof Redis.prototype.subscribe);
"""


def test_node_finds_the_packages_of_the_lock(node: Node) -> None:
    done = node.run("-e", LOAD)
    assert (done.stdout, done.stderr) == ("function function\n", "")
