"""How a server is reached: tokens, addresses, TLS, a proxy in the environment (case C11)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from limbeck.client import connect
from limbeck.client.connection import Connection
from limbeck.errors import LimbeckError, Reason

from .scripted import TARGET, Scripted, items, serving

TOKEN = "hv-token-123"


def faults(address: str | list[str] = "127.0.0.1:7411", **options) -> LimbeckError:
    with pytest.raises(LimbeckError) as caught:
        connect(address, **options)
    assert caught.value.reason is Reason.REQUEST_INVALID
    return caught.value


# --------------------------------------------------------------------------------------------------------- case C11


@pytest.mark.parametrize("file", ["token_with_newline.txt", "token_crlf_bom.txt"])
def test_what_editors_add_to_a_token_file_is_not_sent(file, data):
    servicer = Scripted()
    with serving(servicer) as address, connect(address, token_file=data / "C11" / file) as client:
        assert len(list(client.score("t", items(1), TARGET))) == 1
    assert servicer.seen[0].metadata["authorization"] == f"Bearer {TOKEN}"


def test_a_token_given_as_text_is_cleaned_too():
    servicer = Scripted()
    with serving(servicer) as address, connect(address, token=f"\ufeff{TOKEN}\r\n") as client:
        list(client.score("t", items(1), TARGET))
    assert servicer.seen[0].metadata["authorization"] == f"Bearer {TOKEN}"


def test_two_lines_are_refused_before_connecting_and_never_shown(data):
    error = faults(token_file=data / "C11" / "token_two_lines.txt")
    assert "holds 2 lines, 1 is allowed" in str(error)
    assert "token_two_lines.txt" in str(error)
    assert TOKEN not in str(error)
    assert "second" not in str(error)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "holds no token"),
        (b"\n\n", "holds no token"),
        ("gehe\u00efm-7".encode(), "sign 5 of the token is a blank or no visible ASCII"),
        (b"two words", "sign 4 of the token"),
        (b"\xff\xfeh\x00v\x00", "is not text in UTF-8"),
    ],
)
def test_a_token_that_no_header_can_carry_is_refused(raw, told, tmp_path):
    file = tmp_path / "token"
    file.write_bytes(raw)
    error = faults(token_file=file)
    assert told in str(error)
    assert not raw.strip() or raw.strip().decode("latin-1") not in str(error)


def test_a_connection_does_not_show_its_token():
    connection = Connection.of("127.0.0.1:1", token=TOKEN)
    assert TOKEN not in repr(connection)
    assert connection.metadata() == (("authorization", f"Bearer {TOKEN}"),)


def test_a_token_file_that_changes_counts_from_the_next_call_on(tmp_path):
    file = tmp_path / "token"
    file.write_text("first")
    servicer = Scripted()
    with serving(servicer) as address, connect(address, token_file=file) as client:
        list(client.score("t", items(1), TARGET))
        file.write_text("second\n")
        list(client.score("t", items(1), TARGET))
    assert [seen.metadata["authorization"] for seen in servicer.seen] == ["Bearer first", "Bearer second"]


def test_this_machine_is_reached_with_a_proxy_in_the_environment(data):
    script = (
        "import sys\n"
        "from limbeck.client import connect\n"
        "with connect([sys.argv[1]] if len(sys.argv) < 3 else sys.argv[1:], timeout=5) as client:\n"
        "    print(client.teacher('t').name)\n"
    )
    with serving(Scripted()) as address:
        port = address.rpartition(":")[2]
        for places in ([address], [f"localhost:{port}"], [address, f"localhost:{port}"]):
            command = f'source {data / "C11" / "environment.sh"}; exec "$@"'
            done = subprocess.run(
                ["bash", "-c", command, "bash", sys.executable, "-c", script, *places], capture_output=True, text=True
            )
            assert (done.returncode, done.stdout) == (0, "t\n"), done.stderr


# --------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:500611", "port 500611 of '127.0.0.1:500611' is not one of 1 … 65535"),
        ("127.0.0.1:0", "port 0 of"),
        ("127.0.0.1:x", "port x of"),
        ("http://127.0.0.1:7411", "'http://127.0.0.1:7411' is no address (give host:port"),
        ("", "'' is no address"),
        ("a b:1", "'a b:1' is no address"),
        ("::1:7411", "is no address (give host:port, for example 127.0.0.1:7411 or [::1]:7411)"),
        ([], "no address is given"),
    ],
)
def test_an_address_that_is_none_is_told(address, told):
    assert told in str(faults(address))


@pytest.mark.parametrize(
    ("address", "target", "secure"),
    [
        ("127.0.0.1", "127.0.0.1:7411", False),
        ("localhost:9", "localhost:9", False),
        ("[::1]:9", "[::1]:9", False),
        ("teacher.example:9", "teacher.example:9", True),
        ("10.0.0.7:9", "10.0.0.7:9", True),
        (["127.0.0.1:8", "127.0.0.2:9"], "ipv4:127.0.0.1:8,127.0.0.2:9", False),
        (["[::1]:8", "[::1]:9"], "ipv6:[::1]:8,[::1]:9", False),
        (["127.0.0.1:8", "10.0.0.7:9"], "ipv4:127.0.0.1:8,10.0.0.7:9", True),
    ],
)
def test_only_this_machine_is_reached_without_tls(address, target, secure):
    connection = Connection.of(address)
    assert (connection.target, connection.secure) == (target, secure)
    assert not Connection.of(address, insecure=True).secure


def test_addresses_of_both_families_are_refused():
    assert "some addresses are of IPv4 and others of IPv6" in str(faults(["127.0.0.1:8", "[::1]:8"]))


def test_everything_that_is_wrong_is_told_at_once(tmp_path):
    error = faults("127.0.0.1:0", token="a", token_file=tmp_path / "b", tls_cert=tmp_path / "c", insecure=True)
    assert [problem.field for problem in error.problems] == [
        "address",
        "tls_cert",
        "tls_cert, tls_key",
        "insecure",
        "token_file",
    ]


# --------------------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cert.pem and key.pem of localhost, signed by themselves; other.pem is somebody else's."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("cert", "other"):
        command = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
        )
        command += f" -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout {name}-key.pem -out {name}.pem"
        try:
            subprocess.run(command.split(), cwd=folder, capture_output=True, check=True)
        except FileNotFoundError:
            pytest.skip("openssl is not installed")
    return folder


def test_a_server_with_tls_is_reached_and_one_of_another_authority_is_not(certificates):
    pair = (certificates / "cert-key.pem").read_bytes(), (certificates / "cert.pem").read_bytes()
    with serving(Scripted(), grpc.ssl_server_credentials([pair])) as address:
        with connect(address, tls_ca=certificates / "cert.pem") as client:
            assert client.teacher("t").state == "ready"
        port = address.rpartition(":")[2]
        with connect([f"localhost:{port}", address], tls_ca=certificates / "cert.pem") as client:
            assert client.teacher("t").state == "ready"
        with connect(address, tls_ca=certificates / "other.pem", timeout=1) as client:
            with pytest.raises(LimbeckError) as caught:
                client.teacher("t")
            assert caught.value.reason is Reason.SERVER_UNAVAILABLE
            assert "--tls-ca on the command line" in str(caught.value)


def test_what_mends_a_connection_with_tls_is_told(certificates):
    def hint(address: str, **options: Any) -> str:
        with connect(address, timeout=1, **options) as client, pytest.raises(LimbeckError) as caught:
            client.teacher("t")
        assert caught.value.reason is Reason.SERVER_UNAVAILABLE
        return caught.value.problems[0].hint

    pair = (certificates / "cert-key.pem").read_bytes(), (certificates / "cert.pem").read_bytes()
    with serving(Scripted(), grpc.ssl_server_credentials([pair])) as address:
        own = {"tls_cert": certificates / "other.pem", "tls_key": certificates / "other-key.pem"}
        for options in ({}, own, {"tls_ca": certificates / "other.pem"}):
            assert "tls_ca, --tls-ca on the command line" in hint(address, **options)
    with serving(Scripted()) as address:
        assert "speaks no TLS" in hint(address, tls_ca=certificates / "cert.pem")
    assert "tls" not in hint("127.0.0.1:1")


def test_a_server_may_want_the_clients_certificate(certificates):
    pair = (certificates / "cert-key.pem").read_bytes(), (certificates / "cert.pem").read_bytes()
    credentials = grpc.ssl_server_credentials([pair], (certificates / "other.pem").read_bytes(), True)
    with serving(Scripted(), credentials) as address:
        own = {"tls_cert": certificates / "other.pem", "tls_key": certificates / "other-key.pem"}
        with connect(address, tls_ca=certificates / "cert.pem", **own) as client:
            assert client.teacher("t").state == "ready"
        with (
            connect(address, tls_ca=certificates / "cert.pem", timeout=1) as client,
            pytest.raises(LimbeckError, match="cannot be reached"),
        ):
            client.teacher("t")


def test_tls_files_that_cannot_be_used_are_told_before_connecting(certificates, tmp_path):
    words = tmp_path / "words.pem"
    words.write_text("no certificate\n")
    own = {"tls_cert": certificates / "cert.pem", "tls_key": certificates / "other-key.pem"}
    error = faults("127.0.0.1:0", tls_ca=words, **own)
    assert [problem.field for problem in error.problems] == ["address", "tls_ca", "tls_cert"]
    assert "KEY_VALUES_MISMATCH" in str(error)
    assert faults(tls_ca=words).problems[0].file == str(words)
