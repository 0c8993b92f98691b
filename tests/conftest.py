"One real broker for the whole run, and settings that leave the user's own store, work folder and reports alone"
import os
from pathlib import Path
import pytest
from sepsis_nb.stream.broker import Broker
from sepsis_nb.settings import load_settings

ROOT = Path(__file__).resolve().parent.parent

@pytest.fixture(scope='session', autouse=True)
def apart(tmp_path_factory):
    "A folder for everything that tests and notebooks write, named to them by the environment as an operator would"
    tmp = tmp_path_factory.mktemp('sepsis')
    os.environ |= {'SEPSIS_PATHS_WORK':f'{tmp}/work', 'SEPSIS_PATHS_REPORTS':f'{tmp}/reports',
                   'SEPSIS_MLFLOW_TRACKING_URI':f'sqlite:///{tmp}/mlflow.db', 'SEPSIS_WORKER_WEB_PORT':'0'}
    return tmp

@pytest.fixture(scope='session', autouse=True)
def kafka(apart):
    "The embedded Kafka on a free port; `SEPSIS_KAFKA_BOOTSTRAP_SERVERS` names it to child processes"
    with Broker(apart/'kafka', cache=load_settings().cache) as broker:
        os.environ['SEPSIS_KAFKA_BOOTSTRAP_SERVERS'] = broker.bootstrap
        yield broker
