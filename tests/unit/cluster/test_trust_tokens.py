"""Join tokens: made, read, misread, and what a cluster keeps of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.cluster.trust.errors import TokenError
from exo.cluster.trust.token import (
    SECRET_BYTES,
    PlainToken,
    authority_hash,
    create_token,
    parse_token,
    token_id,
    token_verifier,
)

AUTHORITY = b"the authority's certificate"
TOKEN = create_token(AUTHORITY, random_bytes=lambda count: bytes(range(count)))


@given(st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES), st.binary())
def test_a_token_is_read_as_it_was_made(secret: bytes, authority: bytes) -> None:
    token = create_token(authority, random_bytes=lambda count: secret)
    text = token.reveal()
    assert text.startswith("exo1.") and len(text) == 70
    assert parse_token(text) == token
    assert parse_token(f"  {text.upper()}\n") == token
    assert token.authority_hash == authority_hash(authority)


def test_a_token_does_not_show_its_secret_by_accident() -> None:
    secret_text = TOKEN.reveal().split(".")[2]
    assert secret_text not in repr(TOKEN)
    assert secret_text not in str(TOKEN)
    assert secret_text not in f"{TOKEN}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "begins with 'exo1'"),
        ("hello", "begins with 'exo1'"),
        ("exo1", "1 parts"),
        (TOKEN.reveal()[:38], "third part|2 parts|parts"),
        (TOKEN.reveal()[:-3], "third part of this token is 29 characters long, 32 were expected"),
        (TOKEN.reveal() * 2, "5 parts"),
        (TOKEN.reveal() + "aaaa", "third part of this token is 36 characters"),
        (TOKEN.reveal().replace("exo1", "exo2"), "newer release"),
        (TOKEN.reveal()[:-1] + "1", "third part of this token has characters"),
        (TOKEN.reveal()[:5] + "é" + TOKEN.reveal()[6:], "second part of this token has characters"),
    ],
)
def test_a_malformed_token_is_explained_without_repeating_it(text: str, reason: str) -> None:
    with pytest.raises(TokenError, match=reason) as wrong:
        parse_token(text)
    assert TOKEN.reveal().split(".")[2][:20] not in wrong.value.message


@given(st.text())
def test_no_text_does_more_than_fail_to_be_a_token(text: str) -> None:
    for candidate in (text, "exo1." + text, f"exo1.{TOKEN.authority_hash}.{text}"):
        try:
            assert isinstance(parse_token(candidate), PlainToken)
        except TokenError as error:
            assert error.message


@given(st.binary(min_size=16), st.binary(min_size=16))
def test_what_is_kept_of_a_token_tells_tokens_apart_and_not_what_they_are(one: bytes, other: bytes) -> None:
    verifier = token_verifier(one)
    assert len(verifier) == 32 and one not in verifier
    assert (verifier == token_verifier(other)) == (one == other)
    name = token_id(verifier)
    assert len(name) == 12 and name.isalnum()
    assert (name == token_id(token_verifier(other))) == (one == other)


def test_the_derivations_never_change() -> None:
    """Tokens outlive releases: a verifier kept by an older one must fit."""
    verifier = token_verifier(bytes(range(20)))
    assert verifier.hex() == "332bef2992e98db5239f2cad2de802d686b94057d1b77e2ed8b67df75fd8b4c9"
    assert token_id(verifier) == "vghamc35aupr"
    assert TOKEN.reveal() == "exo1.57cdtziar4ddagjqu7ojwkefzfnw3dea.aaaqeayeaudaocajbifqydiob4ibceqt"
