"""All experiments by name."""

from types import ModuleType

from experiments import (
    activation_drift,
    basis_drift,
    boolq_steering,
    gradient_spectrum,
    krylov_recovery,
    language_spectrum,
    linear_regime,
    lora_recovery,
    pushforward_caa,
    search_language,
    search_scaling,
    signal_density,
    specialisation,
    static_bases,
    trajectory_prefix,
)

EXPERIMENTS: dict[str, ModuleType] = {
    module.NAME: module
    for module in (
        gradient_spectrum,
        language_spectrum,
        static_bases,
        basis_drift,
        trajectory_prefix,
        search_scaling,
        signal_density,
        krylov_recovery,
        language_spectrum,
        linear_regime,
        specialisation,
        lora_recovery,
        pushforward_caa,
        boolq_steering,
        search_language,
        activation_drift,
    )
}
"""In the order of their claims. Each has Config, PRESETS, run_seed, claims, tables and figures."""

PRESET_NAMES = ("smoke", "small", "paper")
