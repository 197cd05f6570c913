"""One generation in vLLM's terms, and its result in ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vllm import RequestOutput, SamplingParams
from vllm.logprobs import FlatLogprobs
from vllm.sampling_params import RequestOutputKind

from verl.workers.rollout.base import EngineDiedError, Generation, SamplingSettings


def sampling_params(
    sampling: SamplingSettings, max_tokens: int, stop_token_ids: Sequence[int], sampled: int = 0
) -> SamplingParams:
    """Text is only made where a stop string has to be found in it.

    `sampled`: tokens of the response that are there already. The rest of it draws from random
    numbers of its own.
    """
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=None if sampling.seed is None else sampling.seed ^ sampled,
        max_tokens=max_tokens,
        stop=list(sampling.stop),
        stop_token_ids=list(stop_token_ids),
        detokenize=bool(sampling.stop),
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        logprobs=0,  # of the sampled token alone
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


def scoring_params() -> SamplingParams:
    """Log-probs of the prompt's own tokens. vLLM gives those before temperature and filters, and
    computes such a prompt whole; the one token that it samples besides is greedy."""
    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        detokenize=False,
        prompt_logprobs=0,  # of the prompt's token alone
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def prompt_log_probs(output: RequestOutput) -> list[float]:
    """Of the prompt's tokens after the first."""
    assert isinstance(output.prompt_logprobs, FlatLogprobs), "asked for in `scoring_params`"
    return list(output.prompt_logprobs.logprobs)


def to_generation(output: RequestOutput) -> Generation:
    """vLLM's engine may have sampled on before its frontend found a stop string: those tokens are
    already cut from `token_ids`, and their log-probs are cut here."""
    completion = output.outputs[0]
    if completion.finish_reason not in ("stop", "length"):
        raise EngineDiedError(f"vLLM gave a request up: {completion.finish_reason}")
    token_ids = tuple(completion.token_ids)
    assert isinstance(completion.logprobs, FlatLogprobs), "asked for in `sampling_params`"
    assert completion.weight_versions, "a label on every token that was sampled"
    return Generation(
        token_ids=token_ids,
        log_probs=tuple(completion.logprobs.logprobs[: len(token_ids)]),
        finish_reason=completion.finish_reason,
        weight_version=int(completion.weight_versions[0].version),
    )


def ended_by_text(output: RequestOutput) -> bool:
    """Whether vLLM found a stop string in the text."""
    return isinstance(output.outputs[0].stop_reason, str)


def joined(parts: Sequence[Generation]) -> Generation:
    """The parts of one response, sampled one after the other."""
    return replace(
        parts[-1],
        token_ids=tuple(token for part in parts for token in part.token_ids),
        log_probs=tuple(log_prob for part in parts for log_prob in part.log_probs),
    )
