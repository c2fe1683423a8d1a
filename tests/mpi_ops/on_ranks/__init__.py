"""Cases that run on MPI ranks: functions `test_*(world)`, started by program.py, judged by ../test_on_ranks.py."""
