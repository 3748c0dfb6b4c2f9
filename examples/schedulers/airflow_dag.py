"""An Airflow 3 DAG around the nightly rebuild; put it into the DAGs folder.

In Airflow 2 DAG comes from `airflow` and BashOperator from `airflow.operators.bash`. Exit codes (docs/rebuild.md): 75,
another run is at work, counts as skipped. Airflow repeats every other failure; what a refused gate (3) or bad data (65)
repeats publishes nothing.
"""

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    dag_id="recsys_rebuild",
    schedule="15 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=15), "execution_timeout": timedelta(hours=6)},
) as dag:
    BashOperator(
        task_id="rebuild",
        bash_command=(
            "recsys-rebuild run --store s3://example-bucket/recsys "
            "--interactions /data/interactions --items /data/items.parquet --json"
        ),
        skip_on_exit_code=75,
        do_xcom_push=False,
    )
