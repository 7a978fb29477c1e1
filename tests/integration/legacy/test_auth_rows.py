"""Each row of `docs/legacy-api.md` on how an API is entered: one declaration against a server that wants it so."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr

from tests.integration.legacy.vendor import Asked, Behaviour, Says, Vendor
from worker.errors import RoutesInvalid
from worker.legacy import (
    Answered,
    ApiKey,
    Credential,
    Header,
    LegacyApi,
    Login,
    OAuth2,
    Outcome,
    form_body,
    json_api,
    signed_jwt,
)

Start = Callable[[Behaviour], Vendor]
Form = dict[str, Credential]
SECRET = SecretStr("s3cret")


@contextmanager
def entered(vendor: Vendor, auth: httpx.Auth | None, **declared: object) -> Iterator[LegacyApi]:
    api = vendor.api(auth=auth, probe="GET /ping", **declared)
    try:
        yield api
    finally:
        api.close()


def ping(vendor: Vendor, auth: httpx.Auth | None, **declared: object) -> Answered:
    with entered(vendor, auth, **declared) as api:
        answered = api.ping()
    assert answered is not None
    return answered


def wants(header: str, value: str) -> Behaviour:
    """Let in who carries this header."""
    return lambda asked: Says(200 if asked.headers.get(header.lower()) == value else 401, {"ok": True})


class Tokens:
    """A vendor that gives numbered tokens, and lets in the newest one."""

    def __init__(self, *, at: str = "/token", lives_s: float | None = 3600) -> None:
        self.at, self.lives_s, self.given, self.lock = at, lives_s, 0, threading.Lock()
        self.valid: set[str] = set()

    def __call__(self, asked: Asked) -> Says:
        if asked.path == self.at:
            return self.token(asked)
        scheme, _, token = asked.headers.get("authorization", "").partition(" ")
        return Says(200 if scheme == "Bearer" and token in self.valid else 401, {"ok": True})

    def token(self, asked: Asked) -> Says:
        answer: dict[str, object] = {"access_token": self.another(), "token_type": "bearer"}
        return Says(200, answer | ({} if self.lives_s is None else {"expires_in": self.lives_s}))

    def another(self) -> str:
        with self.lock:
            self.given += 1
            self.valid = {f"token-{self.given}"}
            return f"token-{self.given}"


def test_an_api_key_goes_in_a_header(vendor: Start) -> None:
    """ApiKey names the header."""
    auth = ApiKey("X-Api-Key", SECRET)
    assert ping(vendor(wants("X-Api-Key", "s3cret")), auth).outcome is Outcome.DONE


def test_basic_with_the_key_as_user_and_no_password(vendor: Start) -> None:
    """httpx's own Basic serves."""
    basic = "Basic " + base64.b64encode(b"s3cret:").decode()
    assert ping(vendor(wants("Authorization", basic)), httpx.BasicAuth("s3cret", "")).outcome is Outcome.DONE


def test_client_credentials_as_a_form(vendor: Start) -> None:
    """One OAuth2, whose form is what the vendor's page shows."""
    server = vendor(Tokens())
    form: Form = {"grant_type": "client_credentials", "client_id": "us", "client_secret": SECRET, "scope": "all"}
    assert ping(server, OAuth2(f"{server.url}/token", form)).outcome is Outcome.DONE
    assert server.asked[0].form() == form | {"client_secret": "s3cret"}


def test_a_token_in_a_json_api_document(vendor: Start) -> None:
    """The same grant with a JSON:API body, and the token at data.attributes.access_token."""

    class JsonApi(Tokens):
        def token(self, asked: Asked) -> Says:
            assert asked.headers["content-type"] == "application/vnd.api+json"
            wanted = {"data": {"type": "token", "attributes": {"client_id": "us", "client_secret": "s3cret"}}}
            assert asked.json() == wanted
            return Says(200, {"data": {"attributes": {"access_token": self.another()}}})

    server = vendor(JsonApi())
    auth = OAuth2(
        f"{server.url}/token",
        {"client_id": "us", "client_secret": SECRET},
        body=json_api("token"),
        token="data.attributes.access_token",
        expires="data.attributes.expires_in",
    )
    assert ping(server, auth).outcome is Outcome.DONE


def test_a_password_grant_with_extra_fields(vendor: Start) -> None:
    """Whatever else the vendor wants stands in the form."""
    server = vendor(Tokens())
    form: Form = {
        "grant_type": "password",
        "username": "sync",
        "password": SECRET,
        "user_role": "users",
        "client_id": "us",
    }
    assert ping(server, OAuth2(f"{server.url}/token", form)).outcome is Outcome.DONE
    assert server.asked[0].form()["user_role"] == "users"


class Rotating(Tokens):
    """Each refresh token is good once."""

    def __init__(self) -> None:
        super().__init__()
        self.refresh = "r0"
        self.spent: list[str] = []

    def token(self, asked: Asked) -> Says:
        form = asked.form()
        if form["grant_type"] == "refresh_token":
            if form["refresh_token"] != self.refresh:
                return Says(400, {"error": "invalid_grant"})
            self.spent.append(self.refresh)
        self.refresh = f"r{self.given + 1}"
        return Says(200, {"access_token": self.another(), "refresh_token": self.refresh, "expires_in": 3600})


def test_refresh_tokens_that_rotate_are_used_once(vendor: Start) -> None:
    """Renewal uses the newest refresh token, along with the form's client fields and nothing else."""
    behaviour = Rotating()
    server = vendor(behaviour)
    form: Form = {"grant_type": "password", "username": "sync", "password": SECRET, "client_id": "us"}
    with entered(server, OAuth2(f"{server.url}/token", form)) as api:
        for _ in range(3):
            answered = api.ping()
            assert answered is not None
            assert answered.outcome is Outcome.DONE
            behaviour.valid = set()
    assert behaviour.spent == ["r1", "r2"]
    renewals = [asked.form() for asked in server.asked if asked.path == "/token"][1:]
    assert [set(renewal) for renewal in renewals] == [{"grant_type", "refresh_token", "client_id"}] * 2


def test_a_refused_refresh_token_falls_back_to_the_form(vendor: Start) -> None:
    """A password still opens when the vendor has forgotten the refresh token."""
    behaviour = Rotating()
    server = vendor(behaviour)
    form: Form = {"grant_type": "password", "username": "sync", "password": SECRET}
    with entered(server, OAuth2(f"{server.url}/token", form)) as api:
        api.ping()
        behaviour.valid, behaviour.refresh = set(), "another"
        answered = api.ping()
    assert answered is not None
    assert answered.outcome is Outcome.DONE
    assert [asked.form()["grant_type"] for asked in server.asked if asked.path == "/token"] == [
        "password", "refresh_token", "password"
    ]  # fmt: skip


KEYS: dict[str, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey] = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
}


def _part(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _verified(assertion: str, alg: str) -> dict[str, object]:
    """Check the signature as a vendor does; the claims."""
    head, claims, signature = assertion.split(".")
    signed, given, key = f"{head}.{claims}".encode(), _part(signature), KEYS[alg]
    assert json.loads(_part(head)) == {"alg": alg, "typ": "JWT", "kid": "k1"}
    if isinstance(key, rsa.RSAPrivateKey):
        key.public_key().verify(given, signed, PKCS1v15(), SHA256())
    else:
        numbers = int.from_bytes(given[:32], "big"), int.from_bytes(given[32:], "big")
        key.public_key().verify(encode_dss_signature(*numbers), signed, ec.ECDSA(SHA256()))
    told: dict[str, object] = json.loads(_part(claims))
    return told


@pytest.mark.parametrize("alg", ["RS256", "ES256"])
def test_signed_assertions_with_tokens_of_a_minute(vendor: Start, alg: str) -> None:
    """Each request for a token carries a new assertion, and a short token is renewed before it ends."""

    class Asserted(Tokens):
        def token(self, asked: Asked) -> Says:
            try:
                claims = _verified(asked.form()["client_assertion"], alg)
            except InvalidSignature:
                return Says(401, {"error": "invalid_client"})
            seen.append(claims)
            return super().token(asked)

    seen: list[dict[str, object]] = []
    behaviour = Asserted(lives_s=0.001)
    server = vendor(behaviour)
    pem = KEYS[alg].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    claims = {"iss": "us", "sub": "us", "aud": f"{server.url}/token"}
    form: Form = {
        "grant_type": "client_credentials",
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": signed_jwt(SecretStr(pem), alg, claims, kid="k1"),  # type: ignore[arg-type]
    }
    with entered(server, OAuth2(f"{server.url}/token", form)) as api:
        assert [answered.outcome for _ in range(2) if (answered := api.ping())] == [Outcome.DONE] * 2
    assert len(seen) == 2
    assert seen[0]["jti"] != seen[1]["jti"]
    for told in seen:
        assert isinstance(told["exp"], int)
        assert isinstance(told["iat"], int)
        assert told["exp"] - told["iat"] == 60
        assert told["sub"] == "us"


def test_a_key_of_another_kind_is_refused_at_import() -> None:
    """No assertion is signed by the wrong key, and the key is not in the message."""
    pem = KEYS["ES256"].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    for key in (pem, "no key at all"):
        with pytest.raises(RoutesInvalid, match=r"^RS256: the key ") as refused:
            signed_jwt(SecretStr(key), "RS256", {})
        assert key not in str(refused.value)


def test_a_login_that_answers_a_token_in_a_header(vendor: Start) -> None:
    """The login's own request, and a header to read from and one to carry."""

    def behaviour(asked: Asked) -> Says:
        if asked.line == "POST /api/login":
            assert asked.json() == {"user": "sync", "password": "s3cret"}
            return Says(204, headers={"X-Auth-Token": "t1"})
        return Says(200 if asked.headers.get("x-auth-token") == "t1" else 401, {})

    auth = Login(
        "POST /login",
        {"user": "sync", "password": SECRET},
        token=Header("X-Auth-Token"),
        carry="X-Auth-Token: {token}",
    )
    assert ping(vendor(behaviour), auth).outcome is Outcome.DONE


def test_a_session_cookie_is_carried_until_it_is_refused(vendor: Start) -> None:
    """A login by form; the cookie is taken out of its header, and taken anew once the session is over."""
    sessions = iter(["c1", "c2"])
    current: list[str] = []

    def behaviour(asked: Asked) -> Says:
        if asked.path == "/api/login":
            current[:] = [next(sessions)]
            return Says(200, {}, {"Set-Cookie": f"SESSION={current[0]}; Path=/; HttpOnly"})
        return Says(200 if asked.headers.get("cookie") == f"SESSION={current[0]}" else 401, {})

    auth = Login(
        "POST /login",
        {"user": "sync", "password": SECRET},
        body=form_body,
        token=Header("Set-Cookie", after="SESSION=", before=";"),
        carry="Cookie: SESSION={token}",
    )
    server = vendor(behaviour)
    with entered(server, auth) as api:
        api.ping()
        current[:] = ["over"]
        answered = api.ping()
    assert answered is not None
    assert answered.outcome is Outcome.DONE
    assert server.lines.count("POST /api/login") == 2


def test_a_header_names_on_whose_behalf(vendor: Start) -> None:
    """`headers` of the API go with every request."""
    assert ping(vendor(wants("X-On-Behalf-Of", "dr-7")), None, headers={"X-On-Behalf-Of": "dr-7"}).status == 200


def test_a_401_in_mid_flight_costs_one_token_and_one_more_try(vendor: Start) -> None:
    """The request is sent once more with a new token, body and all; the caller sees nothing of it."""
    behaviour = Tokens()
    server = vendor(behaviour)
    form: Form = {"grant_type": "client_credentials"}
    with entered(server, OAuth2(f"{server.url}/token", form)) as api:
        api.ping()
        behaviour.valid = set()
        answered = api.ping()
    assert answered is not None
    assert answered.outcome is Outcome.DONE
    assert server.lines == ["POST /token", "GET /api/ping", "GET /api/ping", "POST /token", "GET /api/ping"]


def test_a_401_after_renewal_is_not_done(vendor: Start) -> None:
    """One renewal, one more try, and then the request certainly was not done."""

    def behaviour(asked: Asked) -> Says:
        return Says(200, {"access_token": "t"}) if asked.path == "/token" else Says(401, {"error": "t is unknown"})

    server = vendor(behaviour)
    answered = ping(server, OAuth2(f"{server.url}/token", {"grant_type": "client_credentials"}))
    assert answered.outcome is Outcome.NOT_DONE
    assert server.lines.count("GET /api/ping") == 2


@pytest.mark.parametrize("status", [400, 401, 403, 500, 503, 302])
def test_without_a_token_nothing_is_sent(vendor: Start, status: int) -> None:
    """The request is not done, and neither the credentials nor the answer's words are in what is told."""

    def behaviour(asked: Asked) -> Says:
        return Says(status, {"error": "invalid_grant", "words": "s3cret of Jane"}, {"Location": "http://192.0.2.1/x"})

    server = vendor(behaviour)
    form: Form = {"grant_type": "password", "password": SECRET}
    answered = ping(server, OAuth2(f"{server.url}/token", form))
    assert answered.outcome is Outcome.NOT_DONE
    assert f"/token answered {status} invalid_grant" in answered.detail
    assert "s3cret" not in repr(answered)
    assert server.lines == ["POST /token"]


@pytest.mark.parametrize("token", [None, 7, "", "two\nlines", ["t"]])
def test_what_is_no_token_is_not_carried(vendor: Start, token: object) -> None:
    """A token that could not stand in a header is none."""
    server = vendor(lambda asked: Says(200, {"access_token": token}))
    answered = ping(server, OAuth2(f"{server.url}/token", {"grant_type": "client_credentials"}))
    assert answered.outcome is Outcome.NOT_DONE
    assert server.lines == ["POST /token"]


def test_threads_share_one_token(vendor: Start) -> None:
    """Of sixteen threads that come at once one asks."""
    behaviour = Tokens()
    server = vendor(behaviour)
    auth = OAuth2(f"{server.url}/token", {"grant_type": "client_credentials"})
    with entered(server, auth, concurrency=16) as api, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: api.ping(), range(16)))
    assert {answered.outcome for answered in answers if answered} == {Outcome.DONE}
    assert behaviour.given == 1


def test_one_auth_is_for_one_api(vendor: Start) -> None:
    """Two APIs that shared a token would overwrite each other's."""
    auth = OAuth2("https://auth.example.com/token", {"grant_type": "client_credentials"})
    LegacyApi("a", base_url="https://a.example.com", auth=auth, zone="UTC")
    with pytest.raises(RoutesInvalid, match="one for each API"):
        LegacyApi("b", base_url="https://b.example.com", auth=auth, zone="UTC")
