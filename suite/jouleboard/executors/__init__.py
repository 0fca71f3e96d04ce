"""Where families run: in jobs of their own, on this machine or on a cluster, both through submitit. One family a job."""
