LAYOUT = {"nodes": 1, "devices": 1}


def layout(name: str) -> int:
    """Return a resource of `pretrain_model` as a profile or --set-resources has it: resources cannot see each other."""
    asked = workflow.resource_settings.overwrite_resources.get("pretrain_model", {})
    return int(getattr(asked.get(name), "raw", asked.get(name)) or LAYOUT[name])


rule pretrain_model:
    input:
        config=f"{RESULTS}/configs/{{pretrained}}.json",
        train=f"{RESULTS}/tokens/train/manifest.json",
        valid=f"{RESULTS}/tokens/valid/manifest.json",
        tokenizer=f"{RESULTS}/tokenizer/manifest.json",
    output:
        f"{RESULTS}/{{pretrained}}/manifest.json",
    log:
        f"{LOGS}/pretrain_model/{{pretrained}}.log",
    params:
        stage_version=STAGE_VERSIONS["pretrain"],
        summary=describe_training,
    resources:  # how the machine computes a run, never what: set them in a profile or with --set-resources
        nodes=layout("nodes"),
        devices=layout("devices"),  # ranks on each node, one per GPU
        strategy="ddp",
        micro_batch=0,  # sequences per pass; 0: the most that divide a rank's share of a step, up to 8
        recompute="none",  # blocks: compute each block again in the backward pass, to save memory
        # How Slurm's executor is told: the key `mpi` leaves it to the command to start its ranks with srun; of `tasks`
        # and `tasks_per_node` exactly one is given where there are several ranks; 0 and "" are not passed on.
        mpi="srun" if layout("nodes") * layout("devices") > 1 else "",
        tasks=layout("nodes") if layout("devices") == 1 < layout("nodes") else 0,
        tasks_per_node=layout("devices") if layout("devices") > 1 else 0,
        tasks_per_gpu=0,
        cpus_per_task=lambda wildcards, threads: max(1, threads // layout("devices")),
        gres=f"gpu:{layout('devices')}",
        # the log grows over restarts; training is told 5 minutes before its time limit, to save its state
        slurm_extra="--open-mode=append --signal=USR1@300",
    conda:
        ENVIRONMENT
    message:
        "{wildcards.pretrained}: {params.summary}"
    shell:
        "openspectra pretrain --config {input.config} --train {input.train} --valid {input.valid}"
        " --tokenizer {input.tokenizer} --threads {threads} --nodes {resources.nodes}"
        " --devices {resources.devices}"
        " --strategy {resources.strategy} --micro-batch {resources.micro_batch}"
        " --recompute {resources.recompute} --out $(dirname {output}) --log {log}"


rule publish_checkpoint:
    """The weights that a run kept at one step, as a model that can be quantized and evaluated. Made when asked for."""
    input:
        model=trained_run,
    output:
        f"{RESULTS}/{{pretrained}}@{{step}}/manifest.json",
    log:
        f"{LOGS}/publish_checkpoint/{{pretrained}}@{{step}}.log",
    params:
        stage_version=STAGE_VERSIONS["checkpoint"],
    conda:
        ENVIRONMENT
    message:
        "{wildcards.pretrained} at step {wildcards.step}"
    shell:
        "openspectra checkpoint --model {input.model} --step {wildcards.step} --out $(dirname {output}) --log {log}"
