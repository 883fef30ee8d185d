# One image for Dataflow's flex-template launcher and for its workers, so that both run the same code.
# Building, pushing and launching: docs/dataflow.md. `make image-check` lints this file and carries out its steps.
#
# BEAM is the Beam of constraints.txt; the launcher is one static binary, whatever the Python of its image.
ARG PYTHON=3.11
ARG BEAM=2.77.0
ARG LAUNCHER=flex_templates_base_image_release_20240628_RC00

FROM gcr.io/dataflow-templates-base/python311-template-launcher-base:${LAUNCHER} AS launcher
FROM apache/beam_python${PYTHON}_sdk:${BEAM}

COPY --from=launcher /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher

# The dependencies first: a change to the code alone then rebuilds, pushes and pulls only the small layers below.
WORKDIR /template
COPY setup.py pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY beam_prep/__init__.py beam_prep/__init__.py
RUN pip install --no-cache-dir --disable-pip-version-check -c constraints.txt . \
    && pip uninstall --yes beam-prep \
    && rm -rf build beam_prep.egg-info

COPY beam_prep beam_prep
COPY pipelines pipelines
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps . \
    && python -c "import beam_prep.launch, pipelines.prepare" \
    && rm -rf build beam_prep.egg-info

# Another tokenizer than the bundled one, kept in the image: --build-arg TOKENIZER=Qwen/Qwen3-8B (a Hub id), and in the
# configuration `tokenizer: /opt/tokenizer`. Workers then load it from their own disk and ask no network.
# hadolint takes a tokenizer for a token:
# hadolint ignore=DL3064
ARG TOKENIZER=""
# hadolint ignore=DL3064
ENV TOKENIZER_FOLDER=/opt/tokenizer
RUN if [ -n "${TOKENIZER}" ]; then python -m beam_prep.bake_tokenizer "${TOKENIZER}" "${TOKENIZER_FOLDER}"; fi

# What Dataflow's launcher runs. Neither the REQUIREMENTS nor the SETUP variable: everything is installed above, nothing
# is fetched at launch or when a worker starts. Workers use this very Python: by default Beam's boot program would make
# a virtual environment for each of them.
ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/template/pipelines/prepare.py \
    RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1

# The user is the base image's, root: Beam's boot program and Dataflow's launcher write below folders of root's, and
# neither is documented to work as another. What they may do in the cloud is what the service account may.
ENTRYPOINT ["/opt/apache/beam/boot"]
