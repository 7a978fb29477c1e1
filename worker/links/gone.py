"""Which of a resource's legacy records are gone, before a person's word makes others. It only reads.

A record that can be read and is there is never given up. What cannot be read is the person's to know.
"""

from __future__ import annotations

from worker.errors import LedgerError
from worker.ledger import Ledger
from worker.ledger.values import Link
from worker.legacy import Collection
from worker.links.asking import Asking
from worker.mapping import Routes
from worker.plan import THERE


class Gone:
    """Looks for linked records that are no more."""

    def __init__(self, *, ledger: Ledger, routes: Routes, asking: Asking) -> None:
        self._ledger, self._routes, self._asking = ledger, routes, asking

    def of(self, reference: str, slot: str | None = None) -> tuple[Link, ...]:
        """List the links of a resource, or of one slot of it, whose records are not there.

        Raises:
            LedgerError: there is none, in words that say why.
            LegacyUnavailable: the legacy system could not be asked.
        """
        links, _ = self._ledger.known_of(reference)
        linked = [link for link in links if link.state in THERE and slot in {None, link.slot}]
        if not linked:
            raise LedgerError(f"{reference} has no record that the ledger takes to be there: a plain replay is enough")
        gone = tuple(link for link in linked if self._is_gone(link, alone=len(linked) == 1))
        if not gone:
            raise LedgerError(f"the legacy record of {reference} can be read and is there: nothing was given up")
        return gone

    def _is_gone(self, link: Link, *, alone: bool) -> bool:
        collection = self._collection(link)
        keys = self._ledger.keys_of(sorted(set(link.parents.values())))
        parents = {name: keys[parent] for name, parent in link.parents.items() if parent in keys}
        if not collection.can_read or parents.keys() != link.parents.keys():
            if not alone:
                raise LedgerError(f"{link.reference} has several records that cannot be read: name one by --slot")
            return True
        record = self._asking.legacy(collection, lambda left_s: collection.read(link.keys, parents, deadline_s=left_s))
        if record is None:
            return True
        sent = self._ledger.last_sent(link.reference, link.slot) if collection.identity else None
        return sent is not None and bool(collection.differing(sent, record, collection.identity))

    def _collection(self, link: Link) -> Collection:
        route = self._routes.get(link.reference.partition("/")[0])
        declared = {} if route is None else {collection.name: collection for collection in route.collections}
        if link.collection not in declared:
            raise LedgerError(f"{link.reference}: its record is in {link.collection}, which no route declares any more")
        return declared[link.collection]
