"""Who may see a page."""

import pytest

from heap_middleware.exposition.access import COOKIE, Caller, cookie_of, may_see

TOKEN = "0123456789abcdef"
HOME = {"host": "localhost:8000"}


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:80", "[::1]:8000", "LOCALHOST"])
def test_this_machine_may(peer, host):
    """Without a setting, whoever asks from the machine itself, by a name of it."""
    assert may_see(None, Caller(peer, {"host": host}))


@pytest.mark.parametrize(
    "peer", ["10.0.0.1", "192.168.1.2", "::ffff:10.0.0.1", "2001:db8::1", "", "localhost", "no address"]
)
def test_others_may_not(peer):
    """Neither another machine nor whoever comes through a socket without an address."""
    assert not may_see(None, Caller(peer, HOME))


@pytest.mark.parametrize("name", ["x-forwarded-for", "forwarded", "x-real-ip", "x-forwarded-host"])
def test_a_proxy_on_this_machine_is_not_this_machine(name):
    """Behind a proxy everybody comes from a loopback address; and a forged header opens nothing."""
    assert not may_see(None, Caller("127.0.0.1", {**HOME, name: "127.0.0.1"}))
    assert not may_see(None, Caller("10.0.0.1", {**HOME, name: "127.0.0.1"}))


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "", "localhost.evil.example", "[::2]"])
def test_a_site_that_took_our_address_may_not(host):
    """A page in my browser whose name was pointed at my machine is refused."""
    assert not may_see(None, Caller("127.0.0.1", {"host": host}))


def test_a_token_opens_from_anywhere():
    """The token as a bearer, or the cookie that was given for it."""
    assert may_see(TOKEN, Caller("10.0.0.1", {"authorization": f"Bearer {TOKEN}"}))
    assert may_see(TOKEN, Caller("10.0.0.1", {"authorization": f"bearer  {TOKEN} "}))
    assert may_see(TOKEN, Caller("10.0.0.1", {"cookie": f"a=b; {COOKIE}={cookie_of(TOKEN)}"}))


@pytest.mark.parametrize("other", ["me@home=1", "shop:{}=1", "=", "odd", '"', f"{COOKIE}=old"])
def test_cookies_of_others_close_nothing(other):
    """Services on other ports of the machine share its cookies, and may call theirs what they like."""
    assert may_see(TOKEN, Caller("10.0.0.1", {"cookie": f"{other}; {COOKIE}={cookie_of(TOKEN)}; {other}"}))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer "},
        {"authorization": "Bearer 0123456789abcde"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": "Bearer ä" + TOKEN},
        {"cookie": f"{COOKIE}={TOKEN}"},
        {"cookie": f"{COOKIE}="},
        {"cookie": f"{COOKIE}={cookie_of('another one of mine')}"},
        {"cookie": "]]][;;=,\x00"},
    ],
)
def test_anything_else_does_not(headers):
    """A wrong, empty or missing token opens nothing, from this machine neither."""
    assert not may_see(TOKEN, Caller("127.0.0.1", {**HOME, **headers}))


def test_my_own_check_decides():
    """A callable gets the environ or scope; only True is yes."""
    seen = []
    assert may_see(lambda raw: seen.append(raw) or True, Caller(raw="the environ"))
    assert seen == ["the environ"]
    assert not may_see(lambda _: "yes", Caller("127.0.0.1", HOME))
    assert not may_see(lambda _: None, Caller("127.0.0.1", HOME))
    with pytest.raises(LookupError):
        may_see(lambda _: {}["x"], Caller())
