"""The weights of one rank as an engine directory has them: cut, fused and quantized already.

layers.0.attention_norm.weight            a parameter of the rank's decoder, by its own name
layers.0.attention.qkv.weight.codes       a quantized matrix, in place of the parameter
layers.0.attention.qkv.weight.scales
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kvasir_protocol.errors import CheckpointError
from kvasir_workers.engine_directory.manifest import Manifest, build_command, read_manifest
from kvasir_workers.engine_directory.settings import check_settings
from kvasir_workers.engine_directory.tensor_file import sha256_of
from kvasir_workers.model.checkpoint import TensorFile, open_tensors
from kvasir_workers.model.decoder import Decoder
from kvasir_workers.model.fingerprint import samples_of
from kvasir_workers.model.tensor_size import TensorSize
from kvasir_workers.quantization.scheme import QuantizationSpec
from kvasir_workers.reclaim import give_back_read

_CODES, _SCALES = ".codes", ".scales"


@dataclass(frozen=True, slots=True)
class EngineDirectory:
    """A directory that `kvasir build` wrote."""

    path: Path
    manifest: Manifest

    def weight_bytes(self, rank: int) -> int:
        """Of the rank's weights, in memory as in the file. Raises CheckpointError where that isn't the one built."""
        self._checked_file(rank)
        return self.manifest.ranks[rank].weight_bytes

    def fill(self, decoder: Decoder, rank: int, scheme: QuantizationSpec | None = None, *, packs: bool = False) -> None:
        """Put the rank's weights into its decoder, and those that are quantized into its matrices.

        What packs is packed from where the file is mapped: there is no plain copy of it at any time.
        Raises CheckpointError where a file isn't the one that was built.
        """
        file = self._checked_file(rank)
        parameters, matrices = dict(decoder.named_parameters()), decoder.matrices()
        with open_tensors(file, decoder.device) as stored:
            for name, stored_names in _expected(decoder, scheme).items():
                self._check_shapes(file, stored, stored_names)
                contents = [stored.get_tensor(stored_name) for stored_name in stored_names]
                if len(contents) > 1:
                    assert scheme is not None, f"{name} is quantized by no scheme"
                    matrices[name].adopt(scheme, *contents)
                elif not (packs and name in matrices and matrices[name].pack_from(contents[0])):
                    parameters[name].copy_(contents[0])
                for content in contents:
                    give_back_read(content)

    def check(self) -> None:
        """Read everything. Raises CheckpointError where a file isn't the one that was built."""
        for rank, built in enumerate(self.manifest.ranks):
            file = self._checked_file(rank)
            if sha256_of(file) != built.sha256:
                raise self._misfit(file)

    def _checked_file(self, rank: int) -> Path:
        """By its header, its size and a few bytes of each tensor: all of it is not read before it is needed.

        The settings are looked at, too: with others, this isn't the model that was built.
        """
        check_settings(self.path, self.manifest)
        built = self.manifest.ranks[rank]
        file = self.path / built.file
        try:
            samples = samples_of(file)
        except (OSError, CheckpointError) as error:
            raise self._misfit(file, f" ({error})") from error
        if samples != built.samples:
            raise self._misfit(file)
        return file

    def _check_shapes(self, file: Path, stored: TensorFile, expected: dict[str, TensorSize]) -> None:
        for name, size in expected.items():
            if tuple(stored.get_slice(name).get_shape()) != size.shape:
                raise self._misfit(file, f" ({name} has another shape)")

    def _misfit(self, file: Path, why: str = "") -> CheckpointError:
        return CheckpointError(
            f"{file} is not the file that was built{why}; build the directory again: "
            f"`{build_command(self.manifest, str(self.path))}`"
        )


def open_engine_directory(path: Path) -> EngineDirectory | None:
    """None for a directory that is none. Raises CheckpointError for one that can't be read."""
    manifest = read_manifest(path)
    return None if manifest is None else EngineDirectory(path, manifest)


def expected_tensors(decoder: Decoder, scheme: QuantizationSpec | None) -> dict[str, TensorSize]:
    """What a decoder's file holds, in the order in which it is read."""
    return {name: size for sizes in _expected(decoder, scheme).values() for name, size in sizes.items()}


def stored_tensors(decoder: Decoder, scheme: QuantizationSpec | None) -> Iterator[Tensor]:
    """The same of a decoder whose weights are there: one parameter after the other, quantized when its turn comes."""
    matrices = decoder.matrices()
    for name, parameter in decoder.named_parameters():
        matrix = matrices[name].quantized(scheme) if scheme is not None and name in matrices else None
        if matrix is None:
            yield parameter
        else:
            yield matrix.codes
            yield matrix.scales


def _expected(decoder: Decoder, scheme: QuantizationSpec | None) -> dict[str, dict[str, TensorSize]]:
    """Of each parameter: the tensors that stand for it."""
    matrices, expected = decoder.matrices(), {}
    for name, parameter in decoder.named_parameters():
        parts = matrices[name].quantized_sizes(scheme) if scheme is not None and name in matrices else None
        if parts is None:
            expected[name] = {name: TensorSize(parameter.dtype, tuple(parameter.shape))}
        else:
            expected[name] = {name + _CODES: parts[0], name + _SCALES: parts[1]}
    return expected
