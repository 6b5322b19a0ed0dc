import pytest

from kvasir_cluster.ray_file import judge_login, judge_ray_file, read_ray_file
from kvasir_protocol.errors import ConfigError

LOCAL = """\
cluster_name: lab
min_workers: {min_workers}
provider:
  type: local
  head_ip: 10.0.0.1
  worker_ips: [10.0.0.2, 10.0.0.3]
auth: {{ssh_user: me, ssh_private_key: {key}}}
"""


def read(tmp_path, text):
    file = tmp_path / "lab.yaml"
    file.write_text(text)
    return read_ray_file(file)


def test_hosts_user_and_key_are_read(tmp_path):
    file = read(tmp_path, LOCAL.format(min_workers=2, key="~/key"))
    assert (file.hosts, file.user) == (("10.0.0.1", "10.0.0.2", "10.0.0.3"), "me")
    assert file.key is not None
    assert file.key.is_absolute()


def test_a_file_that_starts_fewer_workers_than_it_lists_is_corrected(tmp_path):
    (tmp_path / "key").touch()
    (finding,) = judge_ray_file(read(tmp_path, LOCAL.format(min_workers=1, key=tmp_path / "key")))
    assert finding.what.endswith("lists 2 workers and starts 1")
    assert finding.fix == "set min_workers and max_workers to 2"


def test_a_missing_key_is_told(tmp_path):
    (finding,) = judge_ray_file(read(tmp_path, LOCAL.format(min_workers=2, key=tmp_path / "key")))
    assert finding.what == f"no key {tmp_path}/key"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("provider: {type: aws}\n", r"lab.yaml:1: only hosts of `provider: \{type: local\}`"),
        ("a: 1\nprovider:\n  type: local\n  head_ip: 10.0.0.1\n", "lab.yaml:2: provider needs head_ip and a list"),
        ("a: 1\n", "provider is missing; is it a file of `ray up`"),
    ],
)
def test_other_files_are_refused_with_the_line(tmp_path, text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("code", "said", "what", "fix"),
    [
        (0, "rsync\n", "works, and rsync is there", ""),
        (1, "", "works, but it has no rsync", "install rsync on h"),
        (255, "me@h: Permission denied (publickey).\n", "Permission denied", "authorized_keys"),
        (255, "connect to host h port 22: Connection refused\n", "refused", "start sshd on h"),
        (255, "Connection timed out", "timed out", "may reach its port 22"),
    ],
)
def test_a_login_is_judged_by_what_it_said(code, said, what, fix):
    finding = judge_login("h", "me", code, said)
    assert what in finding.what
    assert fix in finding.fix
    assert finding.is_well == (not fix)
