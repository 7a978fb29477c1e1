"""The clinic's API: dates as MM/DD/YYYY, times on the clinic's own clock, records under "data", one key in a header."""

from pydantic import SecretStr

from worker.legacy import ApiKey, LegacyApi, Wire
from worker.mapping import SiteSettings


class Site(SiteSettings):
    """REVERSE_SYNC_SITE_CLINIC_URL, …_KEY and …_ZONE."""

    prefix = "CLINIC"

    url: str
    key: SecretStr
    zone: str = "America/New_York"


site = Site.read()

CODES = ("unauthorized", "not_found", "inactive", "duplicate", "invalid", "malformed", "unknown_problem", "void")

clinic = LegacyApi(
    "clinic",
    base_url=site.url,
    auth=ApiKey("X-Api-Key", site.key),
    zone=site.zone,
    concurrency=24,  # below the threads of two workers, 16 each
    wire=Wire(date="%m/%d/%Y", datetime="%m/%d/%Y %I:%M %p", duration="minutes"),
    record="data",
    items="data",
    errors=("error.code", "error.message", "error.fields"),
    codes={"error.code": CODES},
    probe="GET /ping",
)
