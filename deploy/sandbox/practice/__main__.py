"""Starts the practice as a process of its own; the package's docstring says everything else."""

from __future__ import annotations

from deploy.sandbox.practice.api import Practice, Rate
from deploy.sandbox.practice.desk import Desk
from deploy.sandbox.practice.records import HABITS
from deploy.sandbox.practice.tokens import Account, Tokens
from deploy.sandbox.witness.process import arguments, run
from deploy.sandbox.witness.store import Store


def main() -> None:
    parser = arguments("practice", "A legacy practice, very different from the clinic.")
    parser.add_argument("--token-seconds", type=float, default=300, help="how long an access token lives")
    parser.add_argument("--rate", type=int, default=0, help="calls in any second before a 429; 0: no limit")
    for name in ("client-id", "client-secret", "username", "password"):
        parser.add_argument(f"--{name}", default=f"practice-{name}", help=f"what {name} must be for a token")
    options = parser.parse_args()
    account = Account(options.client_id, options.client_secret, options.username, options.password)
    store = Store(options.db, HABITS)
    practice = Practice(Desk(store), account, Tokens(store, options.token_seconds), Rate(options.rate))
    run(options, store, practice, practice.control())


if __name__ == "__main__":
    main()
