"""Published samplers, as values of the axes of config.SampleConfig; anything else that is given goes before them.

| preset  | is                                                                   | exact at one token a step?        |
|---------|----------------------------------------------------------------------|-----------------------------------|
| llada   | most probable drawn token first, quotas of LLaDA                     | no: it scores what was drawn      |
| dream   | the same with Dream's quotas, temperature 0.2 and nucleus 0.95       | no: the same, and it sharpens     |
| mdlm    | ancestral sampling on MDLM's grid                                    | in the limit of many steps        |
| md4     | ancestral sampling on MD4's cosine grid                              | in the limit of many steps        |
| remdm   | ancestral with remasking (cap 0.04) and nucleus 0.9                  | no: nucleus                       |
| eb      | least entropy first, while a bound on the KL of a step is 0.1 nats   | yes                               |
| planned | sizes and order of WORKDIR/plan.json                                 | its error is in the plan          |

Those with a number of steps take one token a step where none is given.
"""

PRESETS = {
    "llada": {"selection": "drawn", "transition": "quota_llada"},
    "dream": {
        "selection": "drawn", "scores": "filtered", "transition": "quota_dream", "temperature": 0.2, "top_p": 0.95,
    },
    "mdlm": {"transition": "ancestral_mdlm"},
    "md4": {"transition": "ancestral_md4_cosine"},
    "remdm": {"transition": "ancestral_mdlm", "remasking": "remdm_cap:0.04", "top_p": 0.9},
    "eb": {"selection": "entropy", "transition": "entropy_bound:0.1"},
    "planned": {},
}  # fmt: skip


def preset(name):
    """Returns the fields of SampleConfig that a preset sets.

    Raises:
      ValueError: if there is none of this name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset={name!r}: must be one of {', '.join(PRESETS)}")
    return dict(PRESETS[name])
