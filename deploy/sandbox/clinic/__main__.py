"""Starts the clinic as a process of its own; the package's docstring says everything else."""

from __future__ import annotations

from deploy.sandbox.clinic.api import Clinic
from deploy.sandbox.clinic.desk import Desk
from deploy.sandbox.clinic.records import HABITS
from deploy.sandbox.witness.process import arguments, run
from deploy.sandbox.witness.store import Store


def main() -> None:
    parser = arguments("clinic", "A legacy clinic for the demo.")
    parser.add_argument("--api-key", default="clinic-key", help="what X-Api-Key must be")
    options = parser.parse_args()
    store = Store(options.db, HABITS)
    run(options, store, Clinic(Desk(store), options.api_key))


if __name__ == "__main__":
    main()
