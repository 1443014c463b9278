//! The layouts of all structures that are read, resolved once per kernel build.

use varve_formats::symbols::btf::Btf;

use super::cred::CredLayout;
use super::file::FileLayout;
use super::kthread::KthreadLayout;
use super::layout::Missing;
use super::mm::MmLayout;
use super::module::ModuleLayout;
use super::module_symbols::ModuleSymbolsLayout;
use super::path::PathLayout;
use super::pid::PidLayout;
use super::task::TaskLayout;
use super::vma::VmaLayout;
use super::xarray::XarrayLayout;

/// Where the members of the structures are that this crate reads. A structure that this kernel does not describe keeps
/// only those from working that need it.
#[derive(Clone, Debug)]
pub struct Layouts {
    /// `task_struct` and `signal_struct`.
    pub task: Result<TaskLayout, Missing>,
    /// `cred`.
    pub cred: Result<CredLayout, Missing>,
    /// `kthread` and `worker`.
    pub kthread: Result<KthreadLayout, Missing>,
    /// `pid`, `upid` and `pid_namespace`.
    pub pid: Result<PidLayout, Missing>,
    /// `xa_node`.
    pub xarray: Result<XarrayLayout, Missing>,
    /// `mm_struct` and the tree or list of its VMAs.
    pub mm: Result<MmLayout, Missing>,
    /// `vm_area_struct`.
    pub vma: Result<VmaLayout, Missing>,
    /// `file`, `inode` and `super_block`.
    pub file: Result<FileLayout, Missing>,
    /// `path`, `dentry` and `mount`.
    pub path: Result<PathLayout, Missing>,
    /// `module`.
    pub module: Result<ModuleLayout, Missing>,
    /// `mod_kallsyms`.
    pub module_symbols: Result<ModuleSymbolsLayout, Missing>,
}

impl Layouts {
    /// Looks every member up.
    pub fn resolve(btf: &Btf) -> Self {
        Self {
            task: TaskLayout::resolve(btf),
            cred: CredLayout::resolve(btf),
            kthread: KthreadLayout::resolve(btf),
            pid: PidLayout::resolve(btf),
            xarray: XarrayLayout::resolve(btf),
            mm: MmLayout::resolve(btf),
            vma: VmaLayout::resolve(btf),
            file: FileLayout::resolve(btf),
            path: PathLayout::resolve(btf),
            module: ModuleLayout::resolve(btf),
            module_symbols: ModuleSymbolsLayout::resolve(btf),
        }
    }
}
