"""Version 2 of SageMaker's SDK for Python: Model.deploy, and the AsyncPredictor that it returns."""

from __future__ import annotations

from sagemaker import Session
from sagemaker.async_inference import AsyncInferenceConfig
from sagemaker.async_inference.waiter_config import WaiterConfig
from sagemaker.deserializers import JSONDeserializer, JSONLinesDeserializer
from sagemaker.exceptions import AsyncInferenceModelError
from sagemaker.model import Model
from sagemaker.predictor import Predictor
from sagemaker.predictor_async import AsyncPredictor
from sagemaker.serializers import JSONLinesSerializer, JSONSerializer

from clients.aws_endpoint import ENVIRONMENT, IMAGE, INSTANCE_TYPE, ROLE, TIMEOUT_S
from clients.checks import check, error_of
from clients.requests_sent import LINES

NAME = "sagemaker-v2"
WAITER = WaiterConfig(max_attempts=TIMEOUT_S, delay=1)


def main() -> None:
    # Without a name it asks STS for the account, at AWS's own address, whatever AWS_ENDPOINT_URL says.
    session = Session(default_bucket=NAME)
    bucket = session.default_bucket()
    check("Session.default_bucket", bucket == NAME, bucket)
    model = Model(IMAGE, role=ROLE, env=ENVIRONMENT, name=NAME, sagemaker_session=session, predictor_cls=Predictor)
    predictor = model.deploy(
        initial_instance_count=1,
        instance_type=INSTANCE_TYPE,
        endpoint_name=NAME,
        async_inference_config=AsyncInferenceConfig(f"s3://{bucket}/out", failure_path=f"s3://{bucket}/failed"),
        serializer=JSONSerializer(),
        deserializer=JSONDeserializer(),
        wait=False,
    )
    session.wait_for_endpoint(NAME, poll=1)
    check("Model.deploy", isinstance(predictor, AsyncPredictor), predictor)
    answer = predictor.predict(LINES[0]["body"], waiter_config=WAITER)
    check("AsyncPredictor.predict", answer["object"] == "text_completion", answer)
    wrong = error_of(
        lambda: predictor.predict({"prompt": "a", "top_p": 2}, waiter_config=WAITER), AsyncInferenceModelError
    )
    check("an error is an AsyncInferenceModelError", "top_p" in str(wrong), wrong)
    lines = Predictor(NAME, session, JSONLinesSerializer(), JSONLinesDeserializer())
    answers = AsyncPredictor(lines, name=NAME).predict(LINES, waiter_config=WAITER)
    check("a batch", [each["custom_id"] for each in answers] == [each["custom_id"] for each in LINES], answers)
    predictor.delete_endpoint()
    check("AsyncPredictor.delete_endpoint", True)


if __name__ == "__main__":
    main()
