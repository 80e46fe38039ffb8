"""tasks.settings.secrets: an address with a secret is seen in any place of the settings, and never repeated."""

from __future__ import annotations

import re

import pytest

from tasks.settings import profiles, secrets
from tasks.settings.errors import NodeError, one_line

WORD = "s3cr3t-w0rd"
HOLDING = {
    "userinfo": f"https://user:{WORD}@host/file.jsonl",
    "a token as the user": f"https://{WORD}@host/file.jsonl",
    "capitals": f"HTTPS://user:{WORD}@host/file.jsonl",
    "encoded colon": f"https://user%3A{WORD}@host/file.jsonl",
    "a slash in it": f"https://user:{WORD}/more@host/file.jsonl",
    "object store": f"s3://key:{WORD}@bucket/file.jsonl",
    "ssh with a password": f"ssh://git:{WORD}@host/repository",
    "token": f"https://host/file.jsonl?token={WORD}",
    "api_key": f"https://host/file.jsonl?page=2&api_key={WORD}",
    "api-key": f"https://host/file.jsonl?Api-Key={WORD}",
    "encoded name": f"https://host/file.jsonl?tok%65n={WORD}",
    "access_token behind #": f"https://host/file.jsonl#access_token={WORD}",
    "semicolons": f"https://host/file.jsonl?a=1;password={WORD}",
    "S3, presigned": f"https://b.s3.amazonaws.com/f?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={WORD}",
    "S3, old": f"https://b.s3.amazonaws.com/f?AWSAccessKeyId=AK&Expires=1&Signature={WORD}",
    "Azure": f"https://a.blob.core.windows.net/f?sv=2022&sig={WORD}",
    "Google": f"https://storage.googleapis.com/f?X-Goog-Signature={WORD}",
    "CloudFront": f"https://d.cloudfront.net/f?Key-Pair-Id=K&Policy={WORD}",
    "git's private_token": f"https://host/api/v4/archive?private_token={WORD}",
    "inside a text": f"curl 'https://host/f?token={WORD}' > f",
}
GOOD = (
    "https://host/file.jsonl",
    "https://host:8443/a@b/file.jsonl?page=2",
    "https://host/f?keyword=x&monkey=y&author=z&authority=w&token_count=3&download=true",
    "http://[::1]:8040/file",
    "ssh://git@host/repository",
    "git@host:repository.git",
    "s3://bucket/path",
    "a text with token=1 and user:word@host, but no address",
)


@pytest.mark.parametrize("kind", HOLDING)
def test_it_is_seen_and_stripped(kind):
    text = HOLDING[kind]
    assert secrets.inside(text)
    assert WORD not in secrets.complaint(text)
    assert WORD not in secrets.stripped(f"cannot fetch {text}: HTTP 403")
    assert WORD not in one_line(OSError(f"Client error '403' for url '{text}'"))


@pytest.mark.parametrize("text", GOOD)
def test_a_plain_address_is_left_alone(text):
    assert secrets.inside(text) == ""
    assert secrets.stripped(text) == text or "ssh" in text


def source(url: str) -> dict:
    return {"sources": {"mine": {"hub": "url", "urls": [{"url": url}], "reader": "skypile"}}}


@pytest.mark.parametrize("kind", HOLDING)
def test_no_profile_takes_it_as_a_source(kind):
    with pytest.raises(NodeError) as refused:
        profiles.load("smoke", source(HOLDING[kind]))
    assert WORD not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "overrides",
    [
        {"sources": {"mine": {"hub": "folder", "dataset": HOLDING["token"], "reader": "skypile"}}},
        {
            "sources": {
                "mine": {
                    "dataset": "d",
                    "reader": "skypile",
                    "options": {"deep": [{"er": HOLDING["userinfo"]}]},
                }
            }
        },
        {"sources": {"mine": {"dataset": "d", "reader": "skypile", "note": HOLDING["inside a text"]}}},
        {"runtime": {"endpoints": {"huggingface": [HOLDING["userinfo"]]}}},
        {"runtime": {"artifacts": HOLDING["object store"]}},
        {"runtime": {"folders": {"sources": HOLDING["S3, presigned"]}}},
    ],
)
def test_nor_anywhere_else(overrides):
    with pytest.raises(NodeError) as refused:
        profiles.load("smoke", overrides)
    assert WORD not in str(refused.value)


def test_prefects_server_refuses_it_by_the_schema_before_it_is_a_parameter():
    import jsonschema

    schema = profiles.Overrides.model_json_schema()
    jsonschema.validate(source("https://host/file.jsonl?page=2"), schema)
    for kind in ("userinfo", "a token as the user", "token", "api_key", "api-key", "S3, presigned", "Azure"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(source(HOLDING[kind]), schema)
    assert "(?i" not in secrets.SCHEMA, "a browser's regular expressions have no such flag"
    assert re.compile(secrets.SCHEMA)
