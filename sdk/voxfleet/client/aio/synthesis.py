"""Speech from text, voices from voices, and the weights behind them: ``client.synthesis``."""

# ruff: noqa: A002 - the arguments bear the names of the API's fields

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path

from voxfleet.client import names, port_aio
from voxfleet.client.aio.calls import Calls
from voxfleet.client.aio.speaking import SpeechStream
from voxfleet.client.enums import AUDIO_FORMATS, enum_value
from voxfleet.client.files import bundle_files, describe, manifest_text
from voxfleet.client.speech import Speech
from voxfleet.v1 import job_pb2, synthesis_pb2, synthesis_pb2_grpc

_SPEECH_TIMEOUT_S = 600.0
_SUBMIT_TIMEOUT_S = 120.0
_IMPORT_TIMEOUT_S = 3600.0


class SynthesisGroup:
    """Speaks, converts, and brings weights in."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = synthesis_pb2_grpc.SynthesisServiceStub(calls.channel)

    def synthesize(
        self,
        text: str,
        voice: str,
        *,
        parameters: synthesis_pb2.SynthesisParameters | None = None,
        format: str = "",
        rate_hz: int = 0,
        bitrate_kbps: int = 0,
        timeout_s: float = _SPEECH_TIMEOUT_S,
    ) -> SpeechStream:
        """Speaks a text; iterate over the answer for PCM, or the bytes of a file, as it is made.

        Args:
            text: up to 5,000 characters.
            voice: id or name; in a trained (RVC) voice the text is spoken and then converted.
            parameters: seed, speed, pitch, loudness and so on; every zero means the default. For a trained
                voice ``speaker`` names the zero-shot voice that speaks first (the trained one's own
                recording where empty) and ``conversion`` says how it is converted.
            format: ``flac``, ``mp3``, ``opus`` or ``aac`` for the bytes of such a file; plain samples where
                empty or ``wav``.
            rate_hz: samples a second; the engine's own where 0.
            bitrate_kbps: of compressed formats.
            timeout_s: deadline of the whole stream.
        """
        request = synthesis_pb2.SynthesizeRequest(
            voice=self._calls.name("voices", voice),
            text=text,
            parameters=parameters,
            output=_output(format, rate_hz, bitrate_kbps),
        )
        self._name_all(request.parameters)
        return SpeechStream(self._calls, request, timeout_s)

    async def say(
        self,
        text: str,
        voice: str,
        *,
        parameters: synthesis_pb2.SynthesisParameters | None = None,
        format: str = "",
        rate_hz: int = 0,
        bitrate_kbps: int = 0,
        timeout_s: float = _SPEECH_TIMEOUT_S,
    ) -> Speech:
        """Speaks a text and returns all of it; arguments as of :meth:`synthesize`."""
        stream = self.synthesize(
            text,
            voice,
            parameters=parameters,
            format=format,
            rate_hz=rate_hz,
            bitrate_kbps=bitrate_kbps,
            timeout_s=timeout_s,
        )
        data = bytearray()
        async for piece in stream:
            data += piece
        return Speech(bytes(data), stream.header, stream.summary)

    async def batch(
        self,
        lines: Iterable[str | tuple[str, str] | synthesis_pb2.BatchItem],
        voice: str = "",
        *,
        parameters: synthesis_pb2.SynthesisParameters | None = None,
        format: str = "",
        rate_hz: int = 0,
        bitrate_kbps: int = 0,
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        depends_on: Sequence[str] = (),
        priority: int = 0,
        validate_only: bool = False,
        request_id: str = "",
    ) -> job_pb2.Job:
        """Speaks many texts as one job, with a result per item (``client.jobs.items``).

        Args:
            lines: texts, ``(id, text)`` pairs or whole items; 1 to 100,000.
            voice: id or name, for items that name none.
            parameters: for items that have none of their own.
            format: ``wav`` (the default), ``flac``, ``mp3``, ``opus`` or ``aac``.
            rate_hz: samples a second; the engine's own where 0.
            bitrate_kbps: of compressed formats.
            display_name: for people.
            labels: free labels.
            depends_on: jobs, ids or names, that must succeed first; where one fails, this one does.
            priority: order within its class, -100 to 100, higher first.
            validate_only: checks everything, makes nothing.
            request_id: makes a repeat return the first answer; made once for this call where empty.
        """
        request = synthesis_pb2.BatchSynthesizeRequest(
            parent=self._calls.team,
            voice=self._calls.name("voices", voice) if voice else "",
            parameters=parameters,
            output=_output(format, rate_hz, bitrate_kbps),
            display_name=display_name,
            labels=labels or {},
            depends_on=[self._calls.name("jobs", job) for job in depends_on],
            priority=priority,
            validate_only=validate_only,
            request_id=request_id or names.new_request_id(),
        )
        for line in lines:
            item = _item(line)
            if item.voice:
                item.voice = self._calls.name("voices", item.voice)
            request.items.append(item)
            self._name_all(request.items[-1].parameters)
        self._name_all(request.parameters)
        return await self._calls.unary(
            self._stub.BatchSynthesize, request, safe=True, timeout_s=_SUBMIT_TIMEOUT_S
        )

    async def convert(
        self,
        audios: str | Sequence[str],
        voice: str,
        *,
        engine: str = "",
        parameters: synthesis_pb2.ConversionParameters | None = None,
        format: str = "",
        rate_hz: int = 0,
        bitrate_kbps: int = 0,
        labels: Mapping[str, str] | None = None,
        depends_on: Sequence[str] = (),
        priority: int = 0,
        validate_only: bool = False,
        request_id: str = "",
    ) -> job_pb2.Job:
        """Turns the voice of recordings into another, as a job.

        Args:
            audios: one id or name, or up to 1,000 as a batch.
            voice: id or name.
            engine: ``rvc`` (the default; a trained voice) or ``f5`` (a zero-shot voice speaks what is said in
                the recording again, with its timing).
            parameters: pitch, index rate and so on, for ``f5`` those of ``speaking``; an unset field means
                the default.
            format: ``wav`` (the default), ``flac``, ``mp3``, ``opus`` or ``aac``.
            rate_hz: samples a second; the engine's own where 0.
            bitrate_kbps: of compressed formats.
            labels: free labels.
            depends_on: jobs, ids or names, that must succeed first; where one fails, this one does.
            priority: order within its class, -100 to 100, higher first.
            validate_only: checks everything, makes nothing.
            request_id: makes a repeat return the first answer; made once for this call where empty.
        """
        several = [audios] if isinstance(audios, str) else audios
        request = synthesis_pb2.ConvertAudioRequest(
            parent=self._calls.team,
            audios=[self._calls.name("audios", audio) for audio in several],
            voice=self._calls.name("voices", voice),
            engine=engine,
            parameters=parameters,
            output=_output(format, rate_hz, bitrate_kbps),
            labels=labels or {},
            depends_on=[self._calls.name("jobs", job) for job in depends_on],
            priority=priority,
            validate_only=validate_only,
            request_id=request_id or names.new_request_id(),
        )
        self._name_all(request.parameters.speaking)
        return await self._calls.unary(self._stub.ConvertAudio, request, safe=True)

    def _name_all(self, parameters: synthesis_pb2.SynthesisParameters) -> None:
        """Turns bare ids of lexicons and of a speaker into names; a message that has none stays unset."""
        if parameters.speaker:
            parameters.speaker = self._calls.name("voices", parameters.speaker)
        for number, lexicon in enumerate(parameters.lexicons):
            parameters.lexicons[number] = self._calls.name("lexicons", lexicon)

    async def engines(self) -> AsyncIterator[synthesis_pb2.Engine]:
        """The engines of the fleet, with their parameters as JSON schemas."""
        request = synthesis_pb2.ListEnginesRequest()
        async for page in self._calls.pages(self._stub.ListEngines, request):
            for engine in page.engines:
                yield engine

    async def bundles(self) -> AsyncIterator[synthesis_pb2.Bundle]:
        """The bundles of weights: known, present, and under which licence."""
        request = synthesis_pb2.ListBundlesRequest()
        async for page in self._calls.pages(self._stub.ListBundles, request):
            for bundle in page.bundles:
                yield bundle

    async def pull_bundle(
        self, bundle: str, *, accept_licence: bool = False, request_id: str = ""
    ) -> job_pb2.Job:
        """Brings a known bundle of weights into the fleet's store, as a job. Operators only.

        Args:
            bundle: such as ``f5-v1-base``.
            accept_licence: the caller has read the licence and accepts it.
            request_id: makes a repeat return the first answer; made once for this call where empty.
        """
        request = synthesis_pb2.PullBundleRequest(
            parent=self._calls.team,
            bundle=bundle,
            accept_licence=accept_licence,
            request_id=request_id or names.new_request_id(),
        )
        return await self._calls.unary(self._stub.PullBundle, request, safe=True)

    async def import_bundle(
        self,
        bundle: str,
        folder: str | Path,
        *,
        accept_licence: bool = False,
        timeout_s: float = _IMPORT_TIMEOUT_S,
    ) -> synthesis_pb2.Bundle:
        """Brings a bundle from this disk, where the fleet has no network. Operators only; never repeated.

        Args:
            bundle: its name.
            folder: its files; a ``manifest.json`` among them describes a bundle that is not a known one.
            accept_licence: the caller has read the licence and accepts it.
            timeout_s: deadline of the stream.
        """
        root = Path(folder)
        opening = synthesis_pb2.ImportBundleOpen(
            parent=self._calls.team,
            bundle=bundle,
            accept_licence=accept_licence,
            manifest_json=await port_aio.run_blocking(manifest_text, root),
        )
        paths = await port_aio.run_blocking(bundle_files, root)
        messages = _bundle_messages(opening, root, paths)
        return await self._calls.send(self._stub.ImportBundle, messages, timeout_s)


async def _bundle_messages(
    opening: synthesis_pb2.ImportBundleOpen, root: Path, paths: Sequence[Path]
) -> AsyncIterator[synthesis_pb2.ImportBundleRequest]:
    yield synthesis_pb2.ImportBundleRequest(open=opening)
    for path in paths:
        file = await port_aio.run_blocking(describe, root, path)
        yield synthesis_pb2.ImportBundleRequest(
            file=synthesis_pb2.ImportBundleFile(
                path=file.path, size_bytes=file.size_bytes, sha256=file.sha256
            )
        )
        for chunk in file.chunks():
            yield synthesis_pb2.ImportBundleRequest(chunk=chunk)


def _item(line: str | tuple[str, str] | synthesis_pb2.BatchItem) -> synthesis_pb2.BatchItem:
    if isinstance(line, str):
        return synthesis_pb2.BatchItem(text=line)
    if isinstance(line, tuple):
        return synthesis_pb2.BatchItem(id=line[0], text=line[1])
    copy = synthesis_pb2.BatchItem()
    copy.CopyFrom(line)
    return copy


def _output(format: str, rate_hz: int, bitrate_kbps: int) -> synthesis_pb2.OutputFormat:
    number = enum_value(AUDIO_FORMATS, format, "format") if format else 0
    return synthesis_pb2.OutputFormat(
        format=synthesis_pb2.AudioFormat.ValueType(number), rate_hz=rate_hz, bitrate_kbps=bitrate_kbps
    )
