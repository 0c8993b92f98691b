"""Kernels that are forked from one process in which the large packages are loaded already, so that a hundred pages do
not load them a hundred times. `serve` is that process; run as a program, this file is the kernel's command"""
import atexit, json, os, signal, socket, sys, threading

PACKAGES = ('ipykernel.kernelapp', 'pandas', 'sklearn.linear_model', 'sklearn.ensemble', 'scipy.stats', 'lightgbm',
            'mlflow', 'matplotlib.figure', 'matplotlib.backends.backend_agg', 'faust', 'kafka', 'numba', 'duckdb',
            'pyarrow.parquet')

def serve(path): # path: of a Unix socket
    "Fork a kernel for each connection, which lives as long as that kernel"
    from importlib import import_module
    os.environ['MPLBACKEND'] = 'module://matplotlib_inline.backend_inline' # as a kernel sets it, before the import
    for name in PACKAGES: import_module(name)
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN) # nobody waits for them
    while True:
        conn,_ = server.accept()
        if not os.fork(): return run_kernel(server, conn)
        conn.close()

def run_kernel(server, conn):
    "In the fork: become the kernel that the other end asks for"
    from ipykernel.kernelapp import IPKernelApp
    server.close()
    asked = json.loads(conn.makefile().readline())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    conn.sendall(f'{os.getpid()}\n'.encode())
    os.environ.clear()
    os.environ.update(asked['env'])
    os.chdir(asked['cwd'])
    sys.path[0],sys.argv = '', ['ipykernel_launcher', *asked['args']]
    threading.Thread(target=end_with, args=(conn,), daemon=True).start()
    IPKernelApp.launch_instance()
    atexit._run_exitfuncs()
    os._exit(0) # to take down all that was loaded lasts a second

def end_with(conn):
    "End the process when the other end does"
    conn.recv(1)
    os._exit(1)

def ask(path, args):
    "Stand in for the kernel: pass on signals, and end with it"
    conn = socket.socket(socket.AF_UNIX)
    conn.connect(path)
    conn.sendall((json.dumps(dict(args=args, env=dict(os.environ), cwd=os.getcwd()))+'\n').encode())
    lines = conn.makefile()
    pid = int(lines.readline())
    for s in signal.SIGINT, signal.SIGTERM: signal.signal(s, lambda s, _: os.kill(pid, s))
    lines.read() # until the kernel has ended

if __name__ == '__main__':
    if sys.argv[1] == 'serve': serve(sys.argv[2])
    else: ask(sys.argv[1], sys.argv[2:])
