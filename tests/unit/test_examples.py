"""The examples, as far as that can be told without the programs that read them."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

EXAMPLES = Path(__file__).parents[2] / "examples"
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
BLOCK = re.compile(r'^(terraform|variable|provider|data|resource|output)((?: "[a-z0-9_]+")*) \{$')
NAMES = {"terraform": 0, "variable": 1, "provider": 1, "data": 2, "resource": 2, "output": 1}


def test_terraform() -> None:
    """Blocks of known kinds, closed where they are opened; what is referred to is there."""
    text = (EXAMPLES / "terraform" / "main.tf").read_text()
    depth = 0
    made, variables = set(), set()
    for line in text.splitlines():
        code = STRING.sub('""', line).partition("#")[0]
        if depth == 0 and code.strip():
            block = BLOCK.match(line)
            assert block, line
            names = re.findall(r'"([^"]+)"', block[2])
            assert len(names) == NAMES[block[1]], line
            if block[1] in ("data", "resource"):
                made.add(".".join([*(["data"] if block[1] == "data" else []), *names]))
            if block[1] == "variable":
                variables.add(names[0])
        depth += sum(code.count(one) for one in "{[(") - sum(code.count(one) for one in "}])")
        assert depth >= 0, line
    assert depth == 0
    used = set(re.findall(r"(?:data\.)?openstack_[a-z0-9_]+\.[a-z0-9_]+", text))
    assert used <= made
    assert set(re.findall(r"\bvar\.([a-z_]+)", text)) <= variables


def test_ansible() -> None:
    """One play whose tasks each have a name and one module."""
    [play] = yaml.safe_load((EXAMPLES / "ansible" / "servers.yml").read_text())
    assert play["hosts"] == "localhost"
    for task in play["tasks"]:
        modules = [key for key in task if "." in key]
        assert len(modules) == 1, task
        assert modules[0].startswith(("openstack.cloud.", "ansible.builtin."))
        assert set(task) <= {"name", "loop", "register", "vars", "loop_control", *modules}
