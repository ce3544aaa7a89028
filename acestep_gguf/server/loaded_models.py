"""The bundles of a server: loaded on demand, and the least used unloaded where memory is short."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acestep_gguf.bundle.library import Library
from acestep_gguf.bundle.names import BUNDLE_FILE
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.errors import AceStepError, MemoryShortageError, UsageError
from acestep_gguf.options import EngineOptions
from acestep_gguf.server.errors import ApiError, api_error, log_failure
from acestep_gguf.server.metrics import Metrics
from acestep_gguf.server.model_thread import ModelThread
from acestep_gguf.server.settings import ServerSettings
from acestep_gguf.vision.tiling import tiling_of


@dataclass(frozen=True)
class ServedBundle:
    """A bundle that may be asked for by its name."""

    folder: Path
    bundle: Bundle
    created: int


class Models:
    """All bundles, by their names in the user's list, or else their folders'; belongs to the event loop.

    Args:
        folders: of the bundles; the first answers where no model is named.
        options: how they are loaded.
        settings: of the server.

    Raises:
        BundleError: one is no bundle.
        UsageError: there is no bundle, or two have the same name.
    """

    def __init__(self, folders: list[Path], options: EngineOptions, settings: ServerSettings) -> None:
        if not folders:
            raise UsageError("there is no bundle to serve: name one.")
        self._options = options
        self._settings = settings
        self.metrics = Metrics()
        self.bundles: dict[str, ServedBundle] = {}
        library = Library.read()
        for folder in folders:
            bundle = Bundle.read(folder)
            name = library.name_of(folder) or folder.resolve().name
            if name in self.bundles:
                raise UsageError(f"two bundles are called {name}: rename the folder of one.")
            created = int((folder / BUNDLE_FILE).stat().st_mtime)
            self.bundles[name] = ServedBundle(folder, bundle, created)
        self._threads: OrderedDict[str, ModelThread] = OrderedDict()  # the last used is the last
        self._loading = asyncio.Lock()

    @property
    def threads(self) -> Mapping[str, ModelThread]:
        """Of the bundles that are loaded."""
        return {name: thread for name, thread in self._threads.items() if not thread.has_ended}

    def named(self, name: str | None) -> str:
        """The name of a bundle, by default the first one's.

        Raises:
            ApiError: no model has this name.
        """
        if name is None:
            return next(iter(self.bundles))
        if name not in self.bundles:
            raise ApiError(
                404,
                f"there is no such model: /v1/models lists {', '.join(self.bundles)}.",
                code="model_not_found",
                param="model",
            )
        return name

    async def load_first(self) -> None:
        """Load the first one, so that what is wrong with it is said before anybody asks.

        Raises:
            AceStepError: it cannot be loaded.
        """
        async with self._loading:
            await self._load(self.named(None))

    @asynccontextmanager
    async def lend(self, name: str) -> AsyncIterator[ModelThread]:
        """A loaded bundle, which stays so meanwhile.

        Raises:
            ApiError: it cannot be loaded.
        """
        async with self._loading:
            try:
                thread = await self._load(name)
            except AceStepError as error:
                log_failure(error)
                raise api_error(error) from error
            thread.n_users += 1
        try:
            yield thread
        finally:
            thread.n_users -= 1

    async def _load(self, name: str) -> ModelThread:
        thread = self._threads.get(name)
        while thread is None or thread.has_ended:
            thread = ModelThread(
                self.bundles[name].folder, self._options, queue=self._settings.queue, count=self.metrics.count
            )
            self._threads[name] = thread
            try:
                await thread.model()
            except AceStepError as error:
                await self._threads.pop(name).close()
                idle = [other for other, loaded in self._threads.items() if not loaded.n_users]
                if not isinstance(error, MemoryShortageError) or not idle:
                    raise
                await self._threads.pop(idle[0]).close()
                thread = None
        self._threads.move_to_end(name)
        return thread

    def cancel_all(self) -> None:
        """Cut all answers."""
        for thread in self._threads.values():
            thread.cancel_all()

    async def close(self) -> None:
        """Free everything."""
        self.cancel_all()
        for thread in self._threads.values():
            await thread.close()

    def described(self, name: str) -> dict[str, Any]:
        """A model as /v1/models lists it."""
        served = self.bundles[name]
        image, most = served.bundle.image, 0
        if image is not None:
            _, most = tiling_of(image, max_tiles=self._options.max_tiles).most()
        return {
            "id": name,
            "object": "model",
            "created": served.created,
            "owned_by": "acestep-gguf",
            "loaded": name in self.threads,
            "image_tokens": most,
        }
