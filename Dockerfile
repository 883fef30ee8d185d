# One image for Dataflow's flex-template launcher and for its workers, so that both run the same code:
#   docker build -t REGION-docker.pkg.dev/PROJECT/REPOSITORY/beam-prep:VERSION .
# Launch with that image as the template's image and as --sdk_container_image.
# Beam here is the Beam of setup.py; the launcher is one static binary, whatever the Python of the image it comes from.
ARG BEAM=2.77.0
ARG LAUNCHER=flex_templates_base_image_release_20240628_RC00

FROM gcr.io/dataflow-templates-base/python311-template-launcher-base:${LAUNCHER} AS launcher
FROM apache/beam_python3.11_sdk:${BEAM}

COPY --from=launcher /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher

# The dependencies first: a change to the code alone then rebuilds only the last layers.
WORKDIR /template
COPY setup.py pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY beam_prep/__init__.py beam_prep/__init__.py
RUN pip install --no-cache-dir -c constraints.txt . && pip uninstall --yes beam-prep

COPY beam_prep beam_prep
COPY pipelines pipelines
RUN pip install --no-cache-dir --no-deps .

# Not the REQUIREMENTS or SETUP variables: everything is installed, nothing is fetched at launch.
ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/template/pipelines/prepare.py

# On a worker Beam's boot program starts the SDK; Dataflow runs the launcher by its path.
ENTRYPOINT ["/opt/apache/beam/boot"]
