"""Beginnings of real Python: what the benches complete."""

SNIPPETS = (
    "import argparse\nimport sys\n\n\ndef main():\n    parser = argparse.ArgumentParser(",
    "def read_lines(path):\n    with open(path) as f:\n        for line in f:\n            ",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "import os\nfrom pathlib import Path\n\nROOT = Path(__file__).resolve().parent\n",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return ",
    "try:\n    import json\nexcept ImportError:\n    json = None\n\n\ndef load(text):\n",
    "@property\ndef name(self):\n    return self._name\n\n@name.setter\ndef ",
    "for key, value in sorted(config.items()):\n    if value is None:\n        continue\n    ",
    "def test_empty_list():\n    assert merge([], []) == []\n\n\ndef test_",
    "class Node:\n    def __init__(self, value, left=None, right=None):\n        self.value = ",
    "import logging\n\nlogger = logging.getLogger(__name__)\n\n\ndef connect(host):\n    logger.",
    "def parse_version(text):\n    parts = text.split('.')\n    return tuple(",
    "with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:\n    sock.bind(address)\n",
    "def quicksort(items):\n    if len(items) <= 1:\n        return items\n    pivot = items[0]\n",
    "from dataclasses import dataclass\n\n\n@dataclass\nclass Point:\n    x: float\n    y: int\n",
    "if not isinstance(value, (int, float)):\n    raise TypeError(",
    "def __repr__(self):\n    return f'{self.__class__.__name__}(",
    "async def fetch(session, url):\n    async with session.get(url) as response:\n        ",
    "import re\n\nPATTERN = re.compile(r'^(?P<key>\\w+)=(?P<value>.*)$')\n\n\ndef parse(line):\n",
    "def mean(values):\n    return sum(values) / len(values)\n\n\ndef variance(values):\n",
    "while queue:\n    node = queue.pop(0)\n    if node in seen:\n        continue\n    seen.add(",
    "class Cache(dict):\n    def __missing__(self, key):\n        value = self[key] = ",
    "import unittest\n\n\nclass TestPath(unittest.TestCase):\n    def setUp(self):\n        self.",
    "matrix = [[0] * columns for _ in range(rows)]\nfor i in range(rows):\n    for j in ",
)
"""Two dozen, of 10 to 40 tokens each."""
