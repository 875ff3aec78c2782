"""A policy file in the configuration of a node."""

from __future__ import annotations

import pytest

from nova.errors import ConfigError
from nova.server.config import load, read_policy


def test_a_policy_file_is_checked_with_the_configuration(tmp_path):
    policy, config = tmp_path / "p.toml", tmp_path / "nova.toml"
    policy.write_text('name = "production"\ndefault = "lww"\n')
    config.write_text(f'policy = "{policy}"\n')
    assert load(config).policy == str(policy)
    assert read_policy(load(config).policy).default == "lww"
    assert load(None, {"NOVA_POLICY": str(policy)}).policy == str(policy)
    policy.write_text('name = "production"\ndefault = "lw"\n')
    with pytest.raises(ConfigError, match=r"nova.toml line 1.*p.toml line 2: strategy 'lw' is unknown"):
        load(config)
    policy.unlink()
    with pytest.raises(ConfigError, match="there is no such file"):
        load(config)
