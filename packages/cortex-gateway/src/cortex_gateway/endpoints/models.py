# SPDX-License-Identifier: GPL-3.0-or-later
"""GET /v1/models and GET /v1/models/{id}."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cortex_core.catalogue import Catalogue
from cortex_core.errors import ModelNotFoundError, NoHealthyNodeError
from cortex_core.openai import ModelEntry, ModelList
from cortex_gateway.dialects import anthropic_models
from cortex_gateway.endpoints.answer import answer_body, answer_json
from cortex_gateway.fleet import Fleet
from cortex_gateway.listing import list_models
from cortex_gateway.routing.plan import find_id


class Models:
    """Serves the list of models.

    Args:
        fleet: what is known of the nodes.
        catalogue: what is declared.
        created: Unix seconds, told of each model.
    """

    def __init__(self, fleet: Fleet, catalogue: Catalogue, created: int) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._created = created

    def declare(self, catalogue: Catalogue) -> None:
        """This is declared from now on."""
        self._catalogue = catalogue

    def routes(self) -> list[BaseRoute]:
        """Ids hold slashes, so the rest of the path is the id."""
        return [
            Route("/v1/models", self.all, methods=["GET"]),
            Route("/v1/models/{model_id:path}", self.one, methods=["GET"]),
        ]

    async def all(self, request: Request) -> Response:
        """Every model that may be asked for; in Anthropic's shape, page by page, for who speaks that."""
        models = ModelList(data=self._entries())
        if not _speaks_anthropic(request):
            return answer_json(models)
        page = anthropic_models.read_page(request.scope["query_string"])
        return answer_body(anthropic_models.write_list(models, page))

    async def one(self, request: Request) -> Response:
        """One model, by id, alias, bare name, or a name that a pattern fits.

        Raises:
            ModelNotFoundError: nobody declares or has it.
            NoHealthyNodeError: the same, but a node has never answered, and may have it.
        """
        name: str = request.path_params["model_id"]
        entries = self._entries()
        view = self._fleet.view()
        resident = {found.state.id for found in view.residents(name)}
        entry = _find(entries, name) or next((e for e in entries if e.id in resident), None)
        entry = entry or self._find_meant(entries, name)
        if entry is not None:
            if _speaks_anthropic(request):
                return answer_body(anthropic_models.write_model(entry))
            return answer_json(entry)
        unseen = [f"{node.name}: {node.matter}" for node in view.nodes if not node.was_seen]
        if unseen:
            raise NoHealthyNodeError(model=name, reason="; ".join(unseen))
        raise ModelNotFoundError(model=name)

    def _find_meant(self, entries: list[ModelEntry], name: str) -> ModelEntry | None:
        """What a name that is not listed is served by, told as an alias of it; None: it is not served."""
        target = find_id(self._fleet.view(), self._catalogue, name)
        entry = _find(entries, target)
        return entry and msgspec.structs.replace(entry, id=name, alias_of=target)

    def _entries(self) -> list[ModelEntry]:
        return list_models(self._fleet.view(), self._catalogue, self._created)


def _speaks_anthropic(request: Request) -> bool:
    return "anthropic-version" in request.headers


def _find(entries: list[ModelEntry], name: str) -> ModelEntry | None:
    return next((entry for entry in entries if entry.id == name), None)
