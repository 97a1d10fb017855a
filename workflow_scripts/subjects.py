"""Encode DreamBooth's subjects, what they are called, and the prompts that place them elsewhere."""

from pathlib import Path

from ldmscale.data import dreambooth
from ldmscale.data.encoded import save_array
from ldmscale.data.scenes.subjects import scene_subjects
from ldmscale.data.tokenizer import load_tokenizer
from ldmscale.generation.encode import Encoders
from ldmscale.jobs import job
from ldmscale.models.autoencoder import AutoencoderConfig
from ldmscale.models.clip import CLIPConfig, TextTower
from ldmscale.provenance import read_manifest, write_manifest
from ldmscale.storage import fetch
from ldmscale.training.encoders import load_encoder

with job(snakemake) as say:
    params, inputs = snakemake.params[0], snakemake.params[0]["inputs"]
    ae, clip, text = AutoencoderConfig(**params["ae"]), CLIPConfig(**params["clip"]), TextTower(**params["text"])
    size, names, token = params["image_size"], params["subjects"], params["identifier"]
    if params["folder"]:
        subjects = dreambooth.subjects(fetch(params["folder"]), size, params["fit"], names)
    else:
        subjects = scene_subjects(size, names)
    scale = params["scale"] or read_manifest(snakemake.input.latents, "latents", inputs["latents"])["scale"]
    bpe = load_tokenizer(read_manifest(snakemake.input.tokenizer, "tokenizer", inputs["tokenizer"])["file"])
    encoders = Encoders(ae, clip, text)
    ae_weights = load_encoder(snakemake.input.autoencoder, inputs["autoencoder"], ae)
    clip_weights = load_encoder(snakemake.input.clip, inputs["clip"], clip)
    text_weights = load_encoder(snakemake.input.text, inputs["text"], text)

    def states(texts):
        return encoders.states(text_weights, bpe.encode(texts, text.context_length))

    folder, about = Path(snakemake.output[0]).parent, {}
    save_array(folder / "null.npy", states([""])[0])
    for subject in subjects:
        mean, std = encoders.moments(ae_weights, subject.images)
        name, kind = states([dreambooth.name_prompt(subject, token), dreambooth.name_prompt(subject, None)])
        plain = dreambooth.prompts(subject, None)
        tokens = bpe.encode(plain, clip.context_length)
        arrays = {"images": subject.images, "mean": mean, "std": std, "name": name, "class": kind,
                  "prompts": states(dreambooth.prompts(subject, token)),
                  "embeddings": encoders.text_embeddings(clip_weights, tokens)}  # fmt: skip
        for part, array in arrays.items():
            save_array(folder / subject.name / f"{part}.npy", array)
        about[subject.name] = {"class_name": subject.class_name, "live": subject.live, "prompts": plain}
        say(f"{subject.name}: {len(subject.images)} images of a {subject.class_name}, {len(plain)} prompts")
    write_manifest(snakemake.output[0], "subjects", params["digest"], subjects=about, scale=scale)
