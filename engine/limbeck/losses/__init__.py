"""The built-in losses. Importing this imports no torch: each factory imports its loss when called."""

from __future__ import annotations

from limbeck.interfaces import Loss, LossConfig, LossContext, LossPlugin, Needs, TokenLossConfig
from limbeck.losses.configs import ContrastiveConfig, HiddenMseConfig, JsdConfig


def _teacher_top_k(config: LossConfig) -> Needs:
    return Needs("top_k")


def _label(config: LossConfig) -> Needs:
    return Needs()


def _teacher_text(config: LossConfig) -> Needs:
    return Needs(teacher_text=True)


def _preference_pairs(config: LossConfig) -> Needs:
    return Needs("target", normaliser="pairs", pairs=True)


def _layers(config: HiddenMseConfig) -> Needs:
    student, teacher = zip(*config.layers, strict=True)
    return Needs(
        "hidden_states", student_layers=tuple(sorted(set(student))), teacher_layers=tuple(sorted(set(teacher)))
    )


def _forward_kl(config: TokenLossConfig, context: LossContext) -> Loss:
    from limbeck.losses.divergences import ForwardKL

    return ForwardKL()


def _reverse_kl(config: TokenLossConfig, context: LossContext) -> Loss:
    from limbeck.losses.divergences import ReverseKL

    return ReverseKL()


def _jsd(config: JsdConfig, context: LossContext) -> Loss:
    from limbeck.losses.divergences import JensenShannon

    return JensenShannon()


def _cross_entropy(config: LossConfig, context: LossContext) -> Loss:
    from limbeck.losses.cross_entropy import CrossEntropy

    return CrossEntropy(_label(config))


def _sequence_kd(config: LossConfig, context: LossContext) -> Loss:
    from limbeck.losses.cross_entropy import CrossEntropy

    return CrossEntropy(_teacher_text(config))


def _contrastive(config: ContrastiveConfig, context: LossContext) -> Loss:
    from limbeck.losses.contrastive import Contrastive

    return Contrastive(_preference_pairs(config))


def _hidden_mse(config: HiddenMseConfig, context: LossContext) -> Loss:
    from limbeck.losses.hidden_mse import HiddenMse

    return HiddenMse(_layers(config), config.layers, context)


PLUGINS = (
    LossPlugin(
        name="forward_kl",
        kind="token",
        config=TokenLossConfig,
        needs=_teacher_top_k,
        factory=_forward_kl,
        summary="KL from the teacher to the student: covers all that the teacher says.",
    ),
    LossPlugin(
        name="reverse_kl",
        kind="token",
        config=TokenLossConfig,
        needs=_teacher_top_k,
        factory=_reverse_kl,
        summary="KL from the student to the teacher: keeps to what the teacher finds likely.",
    ),
    LossPlugin(
        name="jsd",
        kind="token",
        config=JsdConfig,
        needs=_teacher_top_k,
        factory=_jsd,
        summary="Generalised Jensen-Shannon divergence, between forward and reverse KL.",
    ),
    LossPlugin(
        name="cross_entropy",
        kind="token",
        config=LossConfig,
        needs=_label,
        factory=_cross_entropy,
        summary="Cross-entropy with the text's own next token; no teacher needed.",
    ),
    LossPlugin(
        name="sequence_kd",
        kind="token",
        config=LossConfig,
        needs=_teacher_text,
        factory=_sequence_kd,
        summary="Cross-entropy on text that a teacher wrote.",
    ),
    LossPlugin(
        name="contrastive",
        kind="sequence",
        config=ContrastiveConfig,
        needs=_preference_pairs,
        factory=_contrastive,
        summary="Direct preference optimisation (DPO) on preference pairs, against a reference model.",
    ),
    LossPlugin(
        name="hidden_mse",
        kind="feature",
        config=HiddenMseConfig,
        needs=_layers,
        factory=_hidden_mse,
        summary="Mean squared error of hidden states of named layer pairs.",
    ),
)
