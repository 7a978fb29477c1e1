"""What the clinic of these tests promises. Apart from its routes, which nobody can import without a site's settings."""

from __future__ import annotations

DEADLINE_S, LANDS_WITHIN_S = 3.0, 2.0
